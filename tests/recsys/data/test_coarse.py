"""Coarse codes: clusters and categories."""

import numpy as np
import pytest

from recsys.data.coarse import coarse_codes, codes_from_categories


def test_separate_clouds_get_separate_codes() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(60) % 3
    vectors = (np.eye(3)[truth] * 10 + rng.normal(size=(60, 3))).astype(np.float32)
    codes = coarse_codes(vectors, num_clusters=3)
    assert codes.dtype == np.int64
    assert len(set(zip(truth, codes, strict=True))) == 3
    assert sorted(set(codes)) == [0, 1, 2]


def test_the_same_seed_gives_the_same_codes() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    first = coarse_codes(vectors, num_clusters=5, seed=3)
    assert first.tolist() == coarse_codes(vectors, num_clusters=5, seed=3).tolist()


def test_vectors_beyond_the_sample_join_the_nearest_cluster() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 20_000)  # 64 a cluster are fitted on, blocks are of 8,192
    vectors = (np.eye(4)[truth] * 10 + rng.normal(size=(20_000, 4))).astype(np.float32)
    codes = coarse_codes(vectors, num_clusters=4)
    assert len(set(zip(truth, codes, strict=True))) == 4


def test_clusters_are_those_of_scikit_learn_or_tighter() -> None:
    from sklearn.cluster import KMeans

    vectors = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    codes = coarse_codes(vectors, num_clusters=8)
    centres = np.stack([vectors[codes == c].mean(0) for c in range(8)])
    spread = float(((vectors - centres[codes]) ** 2).sum())
    assert spread < 1.1 * KMeans(8, n_init=3, random_state=0).fit(vectors).inertia_


def test_fewer_distinct_vectors_than_clusters_give_fewer_codes() -> None:
    vectors = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    codes = coarse_codes(vectors, num_clusters=8)
    assert codes[0] == codes[2] != codes[1]
    assert codes.max() == 1


def test_no_vectors_give_no_codes() -> None:
    assert coarse_codes(np.zeros((0, 4), np.float32), num_clusters=2).tolist() == []


def test_bad_arguments_of_coarse_codes_are_named() -> None:
    with pytest.raises(ValueError, match=r"num_clusters \(0\)"):
        coarse_codes(np.zeros((2, 2), np.float32), num_clusters=0)
    with pytest.raises(ValueError, match=r"shape \(2, 1\).*finite"):
        coarse_codes(np.full((2, 1), np.nan, np.float32), num_clusters=1)


def test_an_item_gets_its_rarest_category_that_is_common_enough() -> None:
    values = [["all", "shoes", "boots"], ["all", "shoes"], ["all", "shoes"], ["all"], []]
    codes, names = codes_from_categories(values, min_count=2)
    assert names == ["all", "shoes"]
    assert codes.tolist() == [1, 1, 1, 0, -1]


def test_of_equally_rare_categories_the_deepest_counts() -> None:
    codes, names = codes_from_categories([["b", "a"], ["b", "a"]], min_count=2)
    assert (codes.tolist(), names) == ([0, 0], ["a"])


def test_single_categories_and_missing_ones_are_understood() -> None:
    codes, names = codes_from_categories(["x", "y", "x", None, ""], min_count=1)
    assert (codes.tolist(), names) == ([0, 1, 0, -1, -1], ["x", "y"])


def test_a_repeated_category_of_one_item_counts_once() -> None:
    assert codes_from_categories([["x", "x"]], min_count=2)[0].tolist() == [-1]


def test_bad_min_count_is_named() -> None:
    with pytest.raises(ValueError, match=r"min_count \(0\)"):
        codes_from_categories(["x"], min_count=0)
