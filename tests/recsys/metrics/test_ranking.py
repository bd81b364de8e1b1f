import math

import numpy as np
import pytest

from recsys.metrics.ranking import (
    hit_rate_at_k,
    mrr_at_k,
    ndcg_at_k,
    ranking_metrics,
    recall_at_k,
)

NAN, INF = math.nan, math.inf


def test_one_relevant_item_is_worked_by_hand() -> None:
    ranks = [1, 2, 3, 11, INF]
    assert recall_at_k(ranks, 2).tolist() == [1, 1, 0, 0, 0]
    assert mrr_at_k(ranks, 3).tolist() == [1, 0.5, 1 / 3, 0, 0]
    # gains 1/log2(2), 1/log2(3), 1/log2(4)
    np.testing.assert_allclose(ndcg_at_k(ranks, 10), [1, 0.6309297535714575, 0.5, 0, 0])


def test_several_relevant_items_share_one_list() -> None:
    ranks = [[1, 4, NAN], [2, 3, 9], [NAN, NAN, NAN]]
    np.testing.assert_allclose(recall_at_k(ranks, 3), [1 / 2, 2 / 3, 0])
    assert hit_rate_at_k(ranks, 1).tolist() == [1, 0, 0]
    assert mrr_at_k(ranks, 3).tolist() == [1, 0.5, 0]
    first = 1 / (1 + 1 / math.log2(3))  # one of two found, at rank 1
    second = (1 / math.log2(3) + 1 / 2) / (1 + 1 / math.log2(3) + 1 / 2)
    np.testing.assert_allclose(ndcg_at_k(ranks, 3), [first, second, 0])


def test_ndcg_divides_by_the_best_list_of_length_k() -> None:
    assert ndcg_at_k([[1, 2, 3]], 2).tolist() == [1.0]


def test_recall_equals_hit_rate_with_one_relevant_item() -> None:
    ranks = np.arange(1, 9)
    assert recall_at_k(ranks, 4).tolist() == hit_rate_at_k(ranks, 4).tolist()


def test_ranking_metrics_names_every_metric_at_every_k() -> None:
    table = ranking_metrics([1, 3], [1, 5])
    assert list(table) == ["recall@1", "recall@5", "ndcg@1", "ndcg@5", "mrr@1", "mrr@5"]
    assert table["mrr@5"].tolist() == [1, 1 / 3]
    assert "hit_rate@5" in ranking_metrics([[1, 3]], [5])


def test_no_users_give_no_values() -> None:
    assert recall_at_k([], 3).shape == (0,)


@pytest.mark.parametrize("metric", [recall_at_k, hit_rate_at_k, ndcg_at_k, mrr_at_k])
def test_wrong_arguments_are_refused(metric) -> None:
    with pytest.raises(ValueError, match=r"k \(0\) must be at least 1"):
        metric([1], 0)
    with pytest.raises(ValueError, match="the smallest is 0"):
        metric([1, 0], 3)
    with pytest.raises(ValueError, match=r"not \(1, 1, 1\)"):
        metric([[[1]]], 3)
