import math

import numpy as np
import pytest

from recsys.metrics.catalogue import (
    category_diversity,
    coverage,
    gini,
    log_popularity,
    mean_over_list,
    recommended_counts,
    self_information,
)

LISTS = np.array([[2, 3, 4], [2, 3, -1], [-1, -1, -1]])


def test_coverage_counts_items_recommended_to_anybody() -> None:
    counts = recommended_counts(LISTS, 7)
    assert counts.tolist() == [0, 0, 2, 2, 1, 0, 0]
    assert coverage(counts, 5) == pytest.approx(3 / 5)


def test_counts_of_batches_add_up() -> None:
    parts = recommended_counts(LISTS[:1], 7) + recommended_counts(LISTS[1:], 7)
    assert parts.tolist() == recommended_counts(LISTS, 7).tolist()


def test_gini_is_zero_for_equal_shares_and_near_one_for_one_item() -> None:
    assert gini(np.array([3, 3, 3]), 3) == pytest.approx(0)
    assert gini(np.array([0, 0, 9, 0]), 4) == pytest.approx(3 / 4)  # (n - 1) / n
    assert gini(np.array([0, 1, 3]), 2) == pytest.approx(0.25)
    assert gini(np.array([0, 0]), 2) == 0


def test_novelty_is_the_mean_self_information_in_bits() -> None:
    bits = self_information(np.array([0, 1, 0]))  # shares 1/4, 1/2, 1/4
    assert mean_over_list(np.array([[1, 2]]), bits).tolist() == [1.5]


def test_mean_over_list_leaves_padding_out() -> None:
    values = log_popularity(np.array([0, 0, 1, 3, 8]))
    means = mean_over_list(LISTS, values)
    expected = [(math.log(2) + math.log(4) + math.log(9)) / 3, (math.log(2) + math.log(4)) / 2]
    np.testing.assert_allclose(means[:2], expected)
    assert math.isnan(means[2])


def test_category_diversity_is_the_share_of_unlike_pairs() -> None:
    category = np.array([-1, -1, 5, 5, 6])
    found = category_diversity(LISTS, category)
    np.testing.assert_allclose(found[:2], [2 / 3, 0])
    assert math.isnan(found[2])


def test_items_of_unknown_category_are_left_out_of_diversity() -> None:
    category = np.array([-1, -1, 5, -1, 6])
    assert category_diversity(LISTS[:1], category).tolist() == [1.0]


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"num_recommendable \(0\)"):
        coverage(np.zeros(3, dtype=np.int64), 0)
    with pytest.raises(ValueError, match=r"num_recommendable \(1\).*recommended \(2\)"):
        gini(np.array([1, 1]), 1)
