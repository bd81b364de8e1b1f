import math

import numpy as np
import pytest

from recsys.metrics.interval import (
    bootstrap,
    holm,
    intervals,
    paired_difference,
    replicate_means,
)


def test_replicate_means_equal_a_loop_over_drawn_users() -> None:
    values = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    means = replicate_means(values, replicates=7, seed=3)
    drawn = np.random.default_rng(3).integers(0, 3, size=(7, 3), dtype=np.int64)
    np.testing.assert_allclose(means, values[drawn].mean(axis=1))


def test_memory_for_the_counts_does_not_change_the_means() -> None:
    values = np.random.default_rng(0).random((11, 2))
    whole = replicate_means(values, replicates=20, seed=1)
    np.testing.assert_allclose(replicate_means(values, replicates=20, seed=1, chunk_bytes=1), whole)


def test_draws_are_paired_across_calls() -> None:
    values = np.random.default_rng(0).random((9, 2))
    both = replicate_means(values, replicates=5, seed=1)
    np.testing.assert_allclose(
        replicate_means(values[:, 1], replicates=5, seed=1)[:, 0], both[:, 1]
    )


def test_the_seed_changes_the_draws() -> None:
    values = np.arange(8.0)
    first, second = (replicate_means(values, replicates=5, seed=s) for s in (1, 2))
    assert not np.array_equal(first, second)


def test_hits_counted_as_booleans_are_averaged() -> None:
    assert bootstrap(np.array([True, False, True, True]))[0].mean == 0.75


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        sample = random.random((120,)) < 0.3
        found = bootstrap(sample, replicates=200, seed=trial, level=0.9)[0]
        held += found.low <= 0.3 <= found.high
    assert 0.83 <= held / 200 <= 0.96


def test_the_interval_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    found = bootstrap(values, replicates=2000)[0]
    expected = 2 * 1.96 * values.std() / math.sqrt(2000)
    assert found.high - found.low == pytest.approx(expected, rel=0.08)


def test_paired_difference_is_worked_by_hand() -> None:
    found = paired_difference([1, 1, 0, 1], [0, 1, 0, 0])
    # differences 1 0 0 1: mean 1/2, sample deviation sqrt(1/3), standard error sqrt(1/12)
    assert found.mean == 0.5
    assert found.standard_error == pytest.approx(math.sqrt(1 / 12))
    assert found.smallest_detectable == pytest.approx(2.801585 * math.sqrt(1 / 12), rel=1e-5)
    assert found.p == pytest.approx(0.0832645, rel=1e-4)  # z = sqrt(3)
    assert found.num_users == 4


def test_pairing_sees_a_small_difference_that_two_intervals_hide() -> None:
    random = np.random.default_rng(0)
    a = random.normal(size=300)
    b = a - 0.01 + 0.02 * random.normal(size=300)
    first, second = bootstrap(a)[0], bootstrap(b)[0]
    assert first.low < second.high
    found = paired_difference(a, b)
    assert found.low > 0
    assert found.p < 1e-6


def test_a_detectable_difference_is_found_about_80_percent_of_the_time() -> None:
    random = np.random.default_rng(0)
    size, found = 100, 0
    effect = 2.8016 / math.sqrt(size)
    for _ in range(300):
        found += (
            paired_difference(effect + random.normal(size=size), np.zeros(size), replicates=1).p
            < 0.05
        )
    assert 0.73 <= found / 300 <= 0.87


def test_equal_runs_do_not_differ() -> None:
    found = paired_difference([1, 0, 1], [1, 0, 1])
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_a_constant_difference_is_certain() -> None:
    assert paired_difference([2, 2, 2], [1, 1, 1]).p == 0


def test_replicate_means_of_one_pass_serve_every_difference() -> None:
    values = np.random.default_rng(0).random((30, 2))
    means = replicate_means(values, seed=4)
    given = paired_difference(values[:, 0], values[:, 1], means=(means[:, 0], means[:, 1]))
    alone = paired_difference(values[:, 0], values[:, 1], seed=4)
    assert given.low == pytest.approx(alone.low)
    first, again = intervals(values, means)[0], bootstrap(values[:, 0], seed=4)[0]
    assert (first.low, first.high) == pytest.approx((again.low, again.high))


def test_holm_is_worked_by_hand() -> None:
    assert holm([0.01, 0.02, 0.5]) == [0.03, 0.04, 0.5]
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"replicates \(0\)"):
        bootstrap([1.0], replicates=0)
    with pytest.raises(ValueError, match="at least one user"):
        bootstrap([])
    with pytest.raises(ValueError, match="finite"):
        bootstrap([math.nan])
    with pytest.raises(ValueError, match=r"level \(1.5\)"):
        bootstrap([1.0], level=1.5)
    with pytest.raises(ValueError, match=r"a \(2,\) and b \(1,\)"):
        paired_difference([1, 2], [1])
    with pytest.raises(ValueError, match=r"p \(1.2\)"):
        holm([1.2])
