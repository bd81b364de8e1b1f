import math

import numpy as np
import pytest

from recsys.metrics.calibration import (
    auc,
    expected_calibration_error,
    grouped_auc,
    log_loss,
    normalized_entropy,
)


def test_log_loss_is_worked_by_hand() -> None:
    assert log_loss([1, 0], [0.25, 0.5]) == pytest.approx((math.log(4) + math.log(2)) / 2)


def test_a_wrong_certainty_costs_a_finite_loss() -> None:
    assert log_loss([1], [0.0]) == pytest.approx(-math.log(1e-7))


def test_normalized_entropy_of_the_base_rate_is_one() -> None:
    assert normalized_entropy([1, 0, 0, 0], [0.25] * 4) == pytest.approx(1)
    assert normalized_entropy([1, 0, 0, 0], [0.9, 0.1, 0.1, 0.1]) < 1
    assert math.isnan(normalized_entropy([1, 1], [0.5, 0.5]))


def test_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    labels = [0, 1, 1, 1]
    assert expected_calibration_error(labels, [0.5, 0.5, 1.0, 1.0], num_bins=2) == 0
    # one bin: predicted .75 on the mean, happened .75
    assert expected_calibration_error(labels, [0.6, 0.6, 0.9, 0.9], num_bins=1) == pytest.approx(0)
    # two bins: |.6 - .5| and |.9 - 1|
    assert expected_calibration_error(labels, [0.6, 0.6, 0.9, 0.9], num_bins=2) == pytest.approx(
        0.1
    )


def test_calibration_error_vanishes_for_honest_probabilities() -> None:
    random = np.random.default_rng(0)
    p = random.random(50_000)
    labels = random.random(50_000) < p
    assert expected_calibration_error(labels, p) < 0.01
    assert expected_calibration_error(labels, p**2) > 0.1


def test_equal_probabilities_share_a_bin_whatever_the_order_of_the_rows() -> None:
    for labels in ([1, 1, 0, 0], [0, 1, 0, 1]):
        assert expected_calibration_error(labels, [0.5] * 4, num_bins=2) == 0


def test_auc_counts_a_tie_as_one_half() -> None:
    assert auc([1, 0, 1, 0], [3.0, 1.0, 2.0, 2.0]) == pytest.approx(3.5 / 4)
    assert math.isnan(auc([1, 1], [1.0, 2.0]))


def test_grouped_auc_equals_the_weighted_mean_of_each_groups_auc() -> None:
    random = np.random.default_rng(1)
    groups = random.integers(0, 6, 60)
    labels = (random.random(60) < 0.4).astype(int)
    labels[groups == 5] = 1
    scores = random.integers(0, 5, 60).astype(float)
    each = [(auc(labels[groups == g], scores[groups == g]), (groups == g).sum()) for g in range(6)]
    usable = [(a, n) for a, n in each if not math.isnan(a)]
    expected = sum(a * n for a, n in usable) / sum(n for _, n in usable)
    value, left_out = grouped_auc(labels, scores, groups)
    assert value == pytest.approx(expected)
    assert left_out == 6 - len(usable)


def test_grouped_auc_without_a_usable_group_is_nan() -> None:
    value, left_out = grouped_auc([1, 0], [0.1, 0.2], ["a", "b"])
    assert math.isnan(value)
    assert left_out == 2


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels must be 0 or 1; found 2"):
        log_loss([2, 0], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"0…1; found 0.5 to 1.5"):
        log_loss([1, 0], [0.5, 1.5])
    with pytest.raises(ValueError, match="found nan"):
        auc([1, 0], [math.nan, 1])
    with pytest.raises(ValueError, match=r"\(1,\) and predictions \(2,\)"):
        auc([1], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"num_bins \(0\)"):
        expected_calibration_error([1], [0.5], num_bins=0)
    with pytest.raises(ValueError, match=r"groups \(1 rows\)"):
        grouped_auc([1, 0], [1.0, 2.0], [0])
