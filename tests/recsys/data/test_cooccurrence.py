"""Co-occurrence graphs against values worked by hand and against slow loops."""

from itertools import combinations

import numpy as np
import pytest

from recsys.data import cooccurrence as module
from recsys.data.cooccurrence import cooccurrence, cooccurrence_vectors


def world(seed: int = 0, users: int = 30, items: int = 14) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users) * 3 + 5, rng.integers(1, 12, users))
    return user, rng.integers(2, items, len(user))


def histories(user: np.ndarray, item: np.ndarray) -> list[list[int]]:
    return [item[user == u].tolist() for u in dict.fromkeys(user.tolist())]


def test_cosine_of_two_users_worked_by_hand() -> None:
    graph = cooccurrence(np.array([1, 1, 1, 4, 4]), np.array([2, 3, 2, 2, 4]), num_items=6)
    expected = np.zeros((6, 6))
    expected[2, 3] = expected[3, 2] = expected[2, 4] = expected[4, 2] = 1 / np.sqrt(2)
    assert graph.toarray() == pytest.approx(expected)
    assert graph.dtype == np.float32


def test_swing_of_three_users_worked_by_hand() -> None:
    # Users 0 and 1 share {2, 3}; user 2 shares only 2 with each of them.
    user, item = np.array([0, 0, 1, 1, 2, 2]), np.array([2, 3, 2, 3, 2, 4])
    graph = cooccurrence(user, item, num_items=5, kind="swing", alpha=1.0).toarray()
    assert graph[2, 3] == pytest.approx(0.5 / (1 + 2))
    assert graph[3, 2] == pytest.approx(0.5 / (1 + 2))
    assert np.count_nonzero(graph) == 2


def test_cosine_equals_a_loop_over_users() -> None:
    user, item = world()
    count = np.zeros((14, 14))
    for one in histories(user, item):
        for a in set(one):
            for b in set(one):
                count[a, b] += 1
    size = np.maximum(np.diag(count), 1)
    expected = count / np.sqrt(np.outer(size, size))
    np.fill_diagonal(expected, 0)
    found = cooccurrence(user, item, num_items=14, num_neighbours=14)
    assert found.toarray() == pytest.approx(expected, abs=1e-6)


def test_swing_equals_a_loop_over_user_pairs() -> None:
    user, item = world()
    sets = [set(one) for one in histories(user, item)]
    expected = np.zeros((14, 14))
    for mine, theirs in combinations(sets, 2):
        common = mine & theirs
        for a in common:
            for b in common - {a}:
                expected[a, b] += 1 / np.sqrt(len(mine) * len(theirs)) / (0.5 + len(common))
    found = cooccurrence(user, item, num_items=14, num_neighbours=14, kind="swing", alpha=0.5)
    assert found.toarray() == pytest.approx(expected, abs=1e-6)


def test_a_window_counts_only_neighbouring_events() -> None:
    user, item = world()
    expected, size = np.zeros((14, 14)), np.ones(14)
    for one in histories(user, item):
        for i, a in enumerate(one):
            size[a] += 1
            for j, b in enumerate(one):
                if a != b and abs(i - j) <= 2:
                    expected[a, b] += 1
    size = np.maximum(size - 1, 1)
    found = cooccurrence(user, item, num_items=14, num_neighbours=14, window=2)
    assert found.toarray() == pytest.approx(expected / np.sqrt(np.outer(size, size)), abs=1e-6)


@pytest.mark.parametrize(("kind", "window"), [("cosine", None), ("cosine", 3), ("swing", None)])
def test_blocks_do_not_change_the_result(monkeypatch, kind, window) -> None:
    user, item = world(1)
    whole = cooccurrence(user, item, num_items=14, kind=kind, window=window)
    monkeypatch.setattr(module, "BLOCK_PAIRS", 5)
    assert (cooccurrence(user, item, num_items=14, kind=kind, window=window) != whole).nnz == 0


def test_only_the_top_neighbours_stay_and_ties_go_to_the_lower_id() -> None:
    user = np.array([0, 0, 0, 0, 1, 1])
    item = np.array([5, 3, 4, 2, 5, 4])
    graph = cooccurrence(user, item, num_items=6, num_neighbours=2).toarray()
    assert np.flatnonzero(graph[5]).tolist() == [2, 4]  # 4 by weight, then 2 before 3
    assert (np.count_nonzero(graph, axis=1) <= 2).all()


def test_only_the_latest_items_of_a_long_history_count() -> None:
    graph = cooccurrence(np.zeros(5, int), np.array([2, 3, 2, 4, 5]), num_items=6, max_history=3)
    assert np.flatnonzero(graph.toarray().any(0)).tolist() == [2, 4, 5]


def test_reserved_ids_are_ignored() -> None:
    graph = cooccurrence(np.zeros(4, int), np.array([0, 1, 2, 3]), num_items=4, window=1)
    assert np.argwhere(graph.toarray()).tolist() == [[2, 3], [3, 2]]


def test_swing_caps_the_users_of_a_popular_item(monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_SWING_USERS", 2)
    user = np.repeat(np.arange(9), 2)
    graph = cooccurrence(user, np.tile([2, 3], 9), num_items=4, kind="swing").toarray()
    assert graph[2, 3] == pytest.approx(0.5 / 3)  # one pair of users, not 36


@pytest.mark.parametrize(("kind", "window"), [("cosine", None), ("cosine", 3), ("swing", None)])
def test_no_events_give_an_empty_graph(kind, window) -> None:
    none = np.zeros(0, np.int64)
    graph = cooccurrence(none, none, num_items=4, kind=kind, window=window)
    assert graph.shape == (4, 4)
    assert graph.nnz == 0


def test_items_with_the_same_neighbours_get_the_same_vector() -> None:
    user = np.repeat([0, 1, 2, 3], 2)
    item = np.array([2, 4, 3, 4, 5, 6, 5, 7])
    vectors = cooccurrence_vectors(user, item, num_items=9, width=4)
    assert vectors.shape == (9, 4)
    assert vectors[2] == pytest.approx(vectors[3], abs=1e-5)
    assert abs(vectors[2] @ vectors[6]) < 1e-5
    assert not vectors[[0, 1, 8]].any()


def test_items_of_one_community_have_close_vectors() -> None:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(60), 5)
    item = 2 + 10 * (user % 3) + rng.integers(0, 10, len(user))  # three groups of ten items
    vectors = cooccurrence_vectors(user, item, num_items=32, width=3)[2:]
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    alike = vectors @ vectors.T
    same = np.equal.outer(np.arange(30) // 10, np.arange(30) // 10)
    assert alike[same].min() > 0.5 > 0.1 > np.abs(alike[~same]).max()


def test_an_item_that_went_with_no_other_has_no_vector() -> None:
    user, item = np.array([0, 0, 1, 1, 2, 3]), np.array([2, 3, 3, 2, 4, 4])
    vectors = cooccurrence_vectors(user, item, num_items=5, width=2)
    assert vectors[[2, 3]].any(axis=1).all()
    assert not vectors[4].any()
    none = np.zeros(0, np.int64)
    assert not cooccurrence_vectors(none, none, num_items=5, width=2).any()


def test_the_same_seed_gives_the_same_vectors() -> None:
    rng = np.random.default_rng(0)
    user, item = np.repeat(np.arange(20), 4), rng.integers(2, 12, 80)
    options = {"num_items": 12, "width": 3}
    first = cooccurrence_vectors(user, item, **options)
    assert np.array_equal(first, cooccurrence_vectors(user, item, **options))
    assert not np.array_equal(first, cooccurrence_vectors(user, item, seed=1, **options))


def test_vectors_need_a_width() -> None:
    with pytest.raises(ValueError, match=r"width \(0\)"):
        cooccurrence_vectors(np.array([0, 0]), np.array([2, 3]), num_items=4, width=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": np.array([2, 9])}, r"item ids \(2 … 9\)"),
        ({"item": np.array([2])}, r"\(2,\) and \(1,\)"),
        ({"kind": "jaccard"}, r"kind \('jaccard'\)"),
        ({"num_neighbours": 0}, r"num_neighbours \(0\)"),
        ({"max_history": -1}, r"max_history \(-1\)"),
        ({"window": 0}, r"window \(0\)"),
        ({"window": 2, "kind": "swing"}, r"window \(2\)"),
        ({"alpha": 0.0}, r"alpha \(0.0\)"),
    ],
)
def test_bad_arguments_are_named(change, message) -> None:
    arguments = {"user": np.array([0, 0]), "item": np.array([2, 3]), "num_items": 4} | change
    with pytest.raises(ValueError, match=message):
        cooccurrence(**arguments)
