from pathlib import Path

import pytest
import torch

from recsys.retrieval.approximate import FaissIndex, HnswConfig
from recsys.retrieval.index import BruteForceIndex


def clustered(num_items: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, width, generator=generator)
    member = torch.randint(0, 20, (num_items,), generator=generator)
    return centres[member] + 0.5 * torch.randn(num_items, width, generator=generator)


def recall(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found[:, :, None] == exact[:, None, :]).any(1).float().mean())


def test_recall_against_the_exact_index_is_high_with_and_without_filters() -> None:
    vectors, queries = clustered(3000, 16, 0), clustered(64, 16, 0)
    recommendable = torch.ones(3000, dtype=torch.bool)
    exact = BruteForceIndex(vectors, recommendable)
    index = FaissIndex(vectors, recommendable)
    allow = torch.rand(3000, generator=torch.Generator().manual_seed(1)) < 0.5
    exclude = exact.search(queries, 5)[1]
    for filters in ({}, {"allow": allow}, {"exclude": exclude}):
        expected = exact.search(queries, 10, **filters)[1]
        assert recall(index.search(queries, 10, **filters)[1], expected) >= 0.98


def test_queries_that_come_up_short_are_answered_exactly() -> None:
    vectors, queries = clustered(400, 4, 2), clustered(6, 4, 2)
    recommendable = torch.ones(400, dtype=torch.bool)
    exact = BruteForceIndex(vectors, recommendable)
    # All that the graph would fetch is refused: half of the items, and for each query its best.
    best = exact.search(queries, 130)[1]
    allow = torch.ones(400, dtype=torch.bool)
    allow[best.unique()[: 400 // 2]] = False
    index = FaissIndex(vectors, recommendable)
    expected = exact.search(queries, 5, allow=allow)[1]
    assert recall(index.search(queries, 5, allow=allow)[1], expected) >= 0.9
    assert (index.search(queries, 5, allow=allow)[1] >= 0).all()


def test_a_saved_graph_answers_as_before(tmp_path: Path) -> None:
    vectors, queries = clustered(500, 8, 3), clustered(5, 8, 3)
    recommendable = torch.ones(500, dtype=torch.bool)
    index = FaissIndex(vectors, recommendable, config=HnswConfig(search_effort=64))
    index.save(tmp_path / "items.faiss")
    loaded = FaissIndex.load(tmp_path / "items.faiss", vectors, recommendable)
    for found, expected in zip(loaded.search(queries, 5), index.search(queries, 5), strict=True):
        assert torch.equal(found, expected)


def test_a_damaged_or_foreign_graph_is_refused(tmp_path: Path) -> None:
    vectors, recommendable = clustered(50, 8, 4), torch.ones(50, dtype=torch.bool)
    path = tmp_path / "items.faiss"
    FaissIndex(vectors, recommendable).save(path)
    with pytest.raises(ValueError, match="built from other vectors"):
        FaissIndex.load(path, vectors + 1, recommendable)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="differs from what was saved"):
        FaissIndex.load(path, vectors, recommendable)
    path.write_bytes(whole[:-7])
    with pytest.raises(ValueError, match=f"holds {len(whole) - 7} bytes; {len(whole)} were saved"):
        FaissIndex.load(path, vectors, recommendable)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"num_links \(1\) must be at least 2"):
        HnswConfig(num_links=1)
    with pytest.raises(ValueError, match=r"min_allowed_fraction \(1.5\)"):
        HnswConfig(min_allowed_fraction=1.5)
