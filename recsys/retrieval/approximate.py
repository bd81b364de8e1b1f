"""Approximate search by FAISS HNSW behind the ``ItemIndex`` contract.

HNSW cannot leave items out while it walks, so it fetches more than k and filters; a query that
comes up short, or an allow list so small that a walk would mostly meet refused items, is answered
by the exact index. Filters are therefore always obeyed; only recall is approximate.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from recsys.config import from_dict, read_json, write_json
from recsys.retrieval.index import (
    NONE_SCORE,
    BruteForceIndex,
    check_search,
    columns_of,
    pad_found,
    recommendable_ids,
    select_rows,
    top_k,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class HnswConfig:
    """Size and effort of the graph."""

    num_links: int = 32
    """Neighbours an item keeps; memory is about 8 × num_links bytes an item above its vector."""
    build_effort: int = 80
    """Candidates kept while building (efConstruction)."""
    search_effort: int = 128
    """Candidates kept while searching (efSearch), raised to the items fetched where lower."""
    min_allowed_fraction: float = 0.2
    """Allow lists that keep a smaller share of the items are searched exactly."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("num_links", "build_effort", "search_effort"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 2.")
        if not 0 <= self.min_allowed_fraction <= 1:
            raise ValueError(
                f"min_allowed_fraction ({self.min_allowed_fraction}) must be between 0 and 1."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Saved:
    """What lies beside a saved graph, so that a damaged or foreign one is refused unread."""

    size: int
    sha256: str
    vectors_sha256: str
    config: HnswConfig


class FaissIndex:
    """HNSW over inner products, with the exact index as its fallback.

    Several threads build the graph in an order that is never quite the same, so two builds may
    differ in a few answers; a saved graph always answers alike.

    Args:
        vectors: Item vectors by internal id, (N, D) float32, on the CPU.
        recommendable: Items that may ever be returned, (N,) bool.
        config: Size and effort of the graph.

    Raises:
        ValueError: If the shapes disagree or a recommendable vector is not finite.
    """

    def __init__(
        self, vectors: Tensor, recommendable: Tensor, *, config: HnswConfig | None = None
    ) -> None:
        self._prepare(vectors, recommendable, config or HnswConfig())
        graph = faiss.IndexHNSWFlat(
            self._vectors.shape[1], self._config.num_links, faiss.METRIC_INNER_PRODUCT
        )
        graph.hnsw.efConstruction = self._config.build_effort
        _share_threads()
        graph.add(self._vectors)
        self._graph: Any = graph

    def _prepare(self, vectors: Tensor, recommendable: Tensor, config: HnswConfig) -> None:
        self._ids = recommendable_ids(vectors, recommendable)
        self._exact = BruteForceIndex(vectors, recommendable)
        self._vectors = np.ascontiguousarray(
            select_rows(vectors.detach().float(), self._ids).numpy()
        )
        self._column = columns_of(self._ids, vectors.shape[0])
        self._config = config

    @property
    def num_items(self) -> int:
        """N, the rows of the catalogue, recommendable or not."""
        return self._exact.num_items

    @torch.no_grad()
    def search(
        self,
        queries: Tensor,
        k: int,
        *,
        exclude: Tensor | None = None,
        allow: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Find the best items of each query; see ``ItemIndex.search``."""
        check_search(queries, k, exclude, allow, (self.num_items, self._vectors.shape[1]))
        if not len(queries):
            return self._exact.search(queries, k)
        num_excluded = 0
        if exclude is not None:
            num_excluded = int((exclude > 0).sum(dim=1).max()) if exclude.numel() else 0
        fetch = k + num_excluded
        num_allowed = len(self._ids)
        if allow is not None:
            num_allowed = int(allow[self._ids].sum())
            share = num_allowed / max(len(self._ids), 1)
            if share < self._config.min_allowed_fraction:
                return self._exact.search(queries, k, exclude=exclude, allow=allow)
            fetch = int(fetch / share * 1.2) + 1
        if fetch >= len(self._ids) // 2:  # the walk would visit most of the graph
            return self._exact.search(queries, k, exclude=exclude, allow=allow)
        scores, columns = self._walk(queries, fetch)
        refused = columns < 0
        if allow is not None:
            refused |= ~allow[self._ids][columns.clamp(min=0)]
        if exclude is not None:
            refused |= _contained(columns, self._column[exclude])
        # Ascending ids first, so that equal scores end up ordered by id.
        columns, order = columns.sort(dim=1)
        scores = scores.masked_fill(refused, NONE_SCORE).gather(1, order)
        best, place = top_k(scores, k)
        found, ids = pad_found(best, self._ids[columns.gather(1, place).clamp(min=0)], k)
        short = (found == NONE_SCORE).any(dim=1).nonzero().squeeze(1)
        if len(short):
            found[short], ids[short] = self._exact.search(
                queries[short], k, exclude=None if exclude is None else exclude[short], allow=allow
            )
        return found, ids

    def _walk(self, queries: Tensor, fetch: int) -> tuple[Tensor, Tensor]:
        """Search the graph: scores and columns (B, fetch), columns -1 where none was found."""
        _share_threads()
        effort = faiss.SearchParametersHNSW()  # type: ignore[attr-defined]
        effort.efSearch = max(self._config.search_effort, fetch)
        scores, columns = self._graph.search(
            np.ascontiguousarray(queries.detach().float().numpy()), fetch, params=effort
        )
        return torch.from_numpy(scores), torch.from_numpy(columns)

    def save(self, path: Path) -> None:
        """Write the graph in FAISS's own format and its checksums to ``path`` + ``.json``.

        Args:
            path: File of the graph; its folder must exist.
        """
        temporary = path.with_name(f".{path.name}.tmp")
        faiss.write_index(self._graph, str(temporary))
        saved = _Saved(
            size=temporary.stat().st_size,
            sha256=_file_hash(temporary),
            vectors_sha256=hashlib.sha256(self._vectors.tobytes()).hexdigest(),
            config=self._config,
        )
        temporary.replace(path)
        write_json(path.with_name(f"{path.name}.json"), saved)

    @classmethod
    def load(cls, path: Path, vectors: Tensor, recommendable: Tensor) -> "FaissIndex":
        """Read a graph that ``save`` wrote, for the same vectors.

        The file is handed to FAISS only if its size and checksum are those written at saving;
        its checksum does not make a file from a stranger safe, so load only what you saved.

        Args:
            path: File of the graph.
            vectors: The item vectors it was built from, (N, D) float32.
            recommendable: (N,) bool.

        Returns:
            The index.

        Raises:
            ValueError: If a file is missing or damaged, or the vectors are not those of the graph.
        """
        saved = from_dict(_Saved, read_json(path.with_name(f"{path.name}.json")), where=str(path))
        if not path.is_file() or path.stat().st_size != saved.size:
            size = path.stat().st_size if path.is_file() else 0
            raise ValueError(
                f"{path} holds {size} bytes; {saved.size} were saved: build the index again."
            )
        if _file_hash(path) != saved.sha256:
            raise ValueError(f"{path} differs from what was saved: build the index again.")
        index = cls.__new__(cls)
        index._prepare(vectors, recommendable, saved.config)
        if hashlib.sha256(index._vectors.tobytes()).hexdigest() != saved.vectors_sha256:
            raise ValueError(f"{path} was built from other vectors: build the index again.")
        index._graph = faiss.read_index(str(path))
        return index


def _share_threads() -> None:
    """Give FAISS as many OpenMP threads as torch has; both bring a runtime of their own."""
    faiss.omp_set_num_threads(torch.get_num_threads())


def _contained(values: Tensor, forbidden: Tensor) -> Tensor:
    """Where ``values`` (B, n) occur in the same row of ``forbidden`` (B, L): (B, n) bool."""
    if not forbidden.shape[1]:
        return torch.zeros_like(values, dtype=torch.bool)
    ordered = forbidden.sort(dim=1).values
    place = torch.searchsorted(ordered, values).clamp(max=ordered.shape[1] - 1)
    return ordered.gather(1, place) == values


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
