"""What every ``ItemIndex`` promises, checked for each implementation against a plain loop."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.retrieval.approximate import FaissIndex
from recsys.retrieval.index import BruteForceIndex, ItemIndex

NUM_ITEMS, WIDTH = 300, 8
BUILDERS: dict[str, Callable[[Tensor, Tensor], ItemIndex]] = {
    "exact": BruteForceIndex,
    "exact in blocks": lambda v, r: BruteForceIndex(v, r, block_scores=64),
    "hnsw": FaissIndex,
}


@pytest.fixture(params=BUILDERS)
def build(request: pytest.FixtureRequest) -> Callable[[Tensor, Tensor], ItemIndex]:
    return BUILDERS[request.param]


def world(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(NUM_ITEMS, WIDTH, generator=generator)
    recommendable = torch.rand(NUM_ITEMS, generator=generator) < 0.9
    recommendable[:2] = False
    return vectors, recommendable, torch.randn(5, WIDTH, generator=generator)


def by_loop(
    vectors: Tensor,
    recommendable: Tensor,
    queries: Tensor,
    k: int,
    exclude: Tensor | None = None,
    allow: Tensor | None = None,
) -> tuple[list[list[float]], list[list[int]]]:
    all_scores, all_ids = [], []
    for row, query in enumerate(queries):
        banned = set() if exclude is None else set(exclude[row].tolist())
        pairs = [
            (-float(query @ vectors[item]), item)
            for item in range(len(vectors))
            if recommendable[item] and item not in banned and (allow is None or allow[item])
        ]
        best = sorted(pairs)[:k]
        best += [(float("inf"), -1)] * (k - len(best))
        all_scores.append([-score for score, _ in best])
        all_ids.append([item for _, item in best])
    return all_scores, all_ids


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[list, list]) -> None:
    np.testing.assert_allclose(found[0].numpy(), expected[0], rtol=1e-5, atol=1e-6)
    assert found[1].tolist() == expected[1]


def test_search_finds_the_best_items_in_order(build) -> None:
    vectors, recommendable, queries = world()
    found = build(vectors, recommendable).search(queries, 7)
    assert found[0].dtype == torch.float32
    assert found[1].dtype == torch.int64
    assert_same(found, by_loop(vectors, recommendable, queries, 7))


def test_excluded_items_are_never_returned(build) -> None:
    vectors, recommendable, queries = world(1)
    index = build(vectors, recommendable)
    exclude = torch.zeros(5, 6, dtype=torch.long)
    exclude[:3, :5] = index.search(queries[:3], 5)[1]
    exclude[3, 1] = exclude[3, 4] = index.search(queries, 1)[1][3]  # repeats are no trouble
    found = index.search(queries, 5, exclude=exclude)
    assert_same(found, by_loop(vectors, recommendable, queries, 5, exclude))


@pytest.mark.parametrize("fraction", [0.02, 0.6])
def test_only_allowed_items_are_returned(build, fraction: float) -> None:
    vectors, recommendable, queries = world(2)
    allow = torch.rand(NUM_ITEMS, generator=torch.Generator().manual_seed(3)) < fraction
    found = build(vectors, recommendable).search(queries, 4, allow=allow)
    assert_same(found, by_loop(vectors, recommendable, queries, 4, allow=allow))


def test_places_without_an_item_hold_minus_infinity_and_minus_one(build) -> None:
    vectors, recommendable, queries = world(4)
    index = build(vectors, recommendable)
    allow = torch.zeros(NUM_ITEMS, dtype=torch.bool)
    allow[[0, 1, 5, 9]] = True
    exclude = torch.tensor([[5, 0]] * 5)
    found = index.search(queries, 3, exclude=exclude, allow=allow)
    assert_same(found, by_loop(vectors, recommendable, queries, 3, exclude, allow))
    assert found[1][0, -1] == -1
    assert found[0][0, -1] == float("-inf")
    assert index.search(queries, 2, allow=torch.zeros_like(allow))[1].tolist() == [[-1, -1]] * 5
    assert build(vectors, torch.zeros_like(allow)).search(queries, 1)[1].tolist() == [[-1]] * 5


def test_k_above_the_catalogue_returns_every_item_once(build) -> None:
    vectors, recommendable, queries = world(5)
    found = build(vectors, recommendable).search(queries, NUM_ITEMS + 3)
    assert_same(found, by_loop(vectors, recommendable, queries, NUM_ITEMS + 3))


def test_equal_scores_are_ordered_by_id(build) -> None:
    vectors, recommendable, queries = world(6)
    vectors[20] *= 10
    vectors[40:60:3] = vectors[20]  # seven twins of item 20
    recommendable[20:60] = True
    queries[0] = vectors[20]
    scores, ids = build(vectors, recommendable).search(queries[:1], 8)
    assert ids[0].tolist() == [20, *range(40, 60, 3)]
    assert len(set(scores[0].tolist())) == 1


def test_each_query_is_answered_as_if_it_were_alone(build) -> None:
    vectors, recommendable, queries = world(7)
    index = build(vectors, recommendable)
    exclude = torch.randint(0, NUM_ITEMS, (5, 9), generator=torch.Generator().manual_seed(0))
    together = index.search(queries, 6, exclude=exclude)[1]
    for row in range(5):
        rows = slice(row, row + 1)
        alone = index.search(queries[rows], 6, exclude=exclude[rows])[1]
        assert alone.tolist() == together[rows].tolist()


def test_no_queries_give_no_rows(build) -> None:
    vectors, recommendable, _ = world()
    scores, ids = build(vectors, recommendable).search(torch.zeros(0, WIDTH), 3)
    assert scores.shape == ids.shape == (0, 3)


def test_an_index_satisfies_the_protocol(build) -> None:
    vectors, recommendable, _ = world()
    index = build(vectors, recommendable)
    assert isinstance(index, ItemIndex)
    assert index.num_items == NUM_ITEMS


def test_wrong_arguments_are_named(build) -> None:
    vectors, recommendable, queries = world()
    index = build(vectors, recommendable)
    with pytest.raises(ValueError, match=r"k \(0\) must be at least 1"):
        index.search(queries, 0)
    with pytest.raises(ValueError, match=r"queries \(5, 7\) must be \(B, 8\)"):
        index.search(queries[:, 1:], 3)
    with pytest.raises(ValueError, match=r"row 2 is not"):
        index.search(queries.index_fill(0, torch.tensor([2]), torch.nan), 3)
    with pytest.raises(ValueError, match=r"exclude holds ids 4 … 300; they must be 0 … 299"):
        index.search(queries[:1], 3, exclude=torch.tensor([[4, 300]]))
    with pytest.raises(ValueError, match=r"exclude \(1, 2\) must be \(5, L\)"):
        index.search(queries, 3, exclude=torch.tensor([[4, 5]]))
    with pytest.raises(ValueError, match=r"allow \(3,\) torch.int64 must be \(300,\) torch.bool"):
        index.search(queries, 3, allow=torch.tensor([1, 2, 3]))


def test_wrong_vectors_are_named(build) -> None:
    vectors, recommendable, _ = world()
    with pytest.raises(ValueError, match=r"vectors \(300, 8\) must be \(N, D\) and .*\(299,\)"):
        build(vectors, recommendable[1:])
    with pytest.raises(ValueError, match="recommendable must be bool, not torch.int64"):
        build(vectors, recommendable.long())
    recommendable[7] = True
    vectors[7, 3] = torch.inf
    with pytest.raises(ValueError, match="1 are not, the first at id 7"):
        build(vectors, recommendable)
