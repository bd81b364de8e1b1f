"""Find the items nearest to a query: the ``ItemIndex`` contract and its exact implementation.

Every index answers alike: inner product, best first, ties to the lower id, and ``(-inf, -1)`` in
the places for which no item was left. ``BruteForceIndex`` is the twin every other is tested with.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

NONE_SCORE = float("-inf")
NONE_ID = -1


@runtime_checkable
class ItemIndex(Protocol):
    """Top-k items by inner product."""

    @property
    def num_items(self) -> int:
        """N, the rows of the catalogue, recommendable or not."""
        ...

    def search(
        self,
        queries: Tensor,
        k: int,
        *,
        exclude: Tensor | None = None,
        allow: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Find the best items of each query.

        Args:
            queries: Query vectors, (B, D) float32.
            k: Items to return a query, at least 1.
            exclude: Internal ids never to return, a list a query, (B, L) int64, padded with
                ``PAD``; ids may repeat.
            allow: Items that may be returned, (N,) bool; None for all. An index never returns
                an item that it was built without, whatever ``allow`` says.

        Returns:
            Scores (B, k) float32, descending, and internal ids (B, k) int64. Equal scores are
            ordered by id. Where fewer than k items are left: score -inf and id -1.

        Raises:
            ValueError: If a shape is wrong, k is below 1, an excluded id lies outside the
                catalogue, or a query is not finite.
        """
        ...


class BruteForceIndex:
    """Exact search: one matrix product a block of items, and a running top k.

    Args:
        vectors: Item vectors by internal id, (N, D) float32.
        recommendable: Items that may ever be returned, (N,) bool.
        block_scores: Most scores held at once, B × items of a block; 4 bytes each.

    Raises:
        ValueError: If the shapes disagree or a recommendable vector is not finite.
    """

    def __init__(
        self, vectors: Tensor, recommendable: Tensor, *, block_scores: int = 16_777_216
    ) -> None:
        ids = recommendable_ids(vectors, recommendable)
        self._num_items = vectors.shape[0]
        self._ids = ids
        self._vectors = select_rows(vectors.detach().float(), ids)
        self._column = columns_of(ids, self._num_items)
        self._block_scores = block_scores

    @property
    def num_items(self) -> int:
        """N, the rows of the catalogue, recommendable or not."""
        return self._num_items

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
        check_search(queries, k, exclude, allow, (self._num_items, self._vectors.shape[1]))
        ids, vectors, column = self._ids, self._vectors, self._column
        if allow is not None:  # the fewer items allowed, the smaller the product
            kept = allow[ids].nonzero().squeeze(1)
            ids, vectors = ids[kept], select_rows(vectors, kept)
            column = columns_of(ids, self._num_items)
        excluded = None if exclude is None else column[exclude]
        block = max(k + 1, self._block_scores // max(len(queries), 1))
        best = queries.new_empty((len(queries), 0), dtype=torch.float32)
        where = ids.new_empty((len(queries), 0))
        for start in range(0, len(ids), block):
            scores = queries.float() @ vectors[start : start + block].T
            if excluded is not None:
                _drop(scores, excluded - start)
            block_best, position = top_k(scores, k)
            # Earlier blocks hold lower ids, so the order of the columns still breaks ties.
            where = torch.cat([where, position + start], dim=1)
            best, order = top_k(torch.cat([best, block_best], dim=1), k)
            where = where.gather(1, order)
        return pad_found(best, ids[where], k)


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Take the k best of each row, equal scores in the order of their position.

    ``torch.topk`` picks among equal scores as it likes; only rows where that shows pay for more.

    Args:
        scores: (B, n) without NaN.
        k: How many; a row shorter than k gives all it has.

    Returns:
        Scores and positions, (B, min(k, n)), best first.

    Example:
        >>> top_k(torch.tensor([[1.0, 3.0, 3.0, 3.0]]), 2)[1]
        tensor([[1, 2]])
    """
    k = min(k, scores.shape[1])
    best, position = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    tied = ((best[:, 1:] == best[:, :-1]) & best[:, 1:].isfinite()).any(dim=1)
    best, position = best[:, :k], position[:, :k]
    rows = tied.nonzero().squeeze(1)
    if len(rows) and k:
        row_scores = scores[rows]
        last = best[rows, -1:]
        equal = row_scores == last
        room = k - (row_scores > last).sum(dim=1, keepdim=True)
        chosen = (row_scores > last) | (equal & (equal.cumsum(dim=1) <= room))
        chosen_position = chosen.nonzero()[:, 1].view(len(rows), k)  # ascending in each row
        sorted_scores, order = row_scores.gather(1, chosen_position).sort(
            dim=1, descending=True, stable=True
        )
        best[rows], position[rows] = sorted_scores, chosen_position.gather(1, order)
    return best, position


def recommendable_ids(vectors: Tensor, recommendable: Tensor) -> Tensor:
    """Check what an index is built from.

    Args:
        vectors: Item vectors, (N, D).
        recommendable: (N,) bool.

    Returns:
        Internal ids that may be returned, ascending, int64.

    Raises:
        ValueError: If the shapes disagree or a recommendable vector is not finite.
    """
    if vectors.ndim != 2 or recommendable.shape != vectors.shape[:1]:
        raise ValueError(
            f"vectors {tuple(vectors.shape)} must be (N, D) and recommendable "
            f"{tuple(recommendable.shape)} must be (N,)."
        )
    if recommendable.dtype != torch.bool:
        raise ValueError(f"recommendable must be bool, not {recommendable.dtype}.")
    ids = recommendable.nonzero().squeeze(1)
    bad = ids[~vectors[ids].isfinite().all(dim=1)]
    if len(bad):
        raise ValueError(f"vectors must be finite; {len(bad)} are not, the first at id {bad[0]}.")
    return ids


def check_search(
    queries: Tensor,
    k: int,
    exclude: Tensor | None,
    allow: Tensor | None,
    shape: tuple[int, int],
) -> None:
    """Check the arguments of a search against an index of ``shape`` (N, D).

    Raises:
        ValueError: As ``ItemIndex.search`` states.
    """
    num_items, width = shape
    if queries.ndim != 2 or queries.shape[1] != width:
        raise ValueError(f"queries {tuple(queries.shape)} must be (B, {width}).")
    if k < 1:
        raise ValueError(f"k ({k}) must be at least 1.")
    if not bool(queries.isfinite().all()):
        rows = (~queries.isfinite().all(dim=1)).nonzero().squeeze(1)
        raise ValueError(f"queries must be finite; row {int(rows[0])} is not.")
    if allow is not None and (allow.shape != (num_items,) or allow.dtype != torch.bool):
        raise ValueError(
            f"allow {tuple(allow.shape)} {allow.dtype} must be ({num_items},) torch.bool."
        )
    if exclude is not None:
        if exclude.ndim != 2 or len(exclude) != len(queries):
            raise ValueError(f"exclude {tuple(exclude.shape)} must be ({len(queries)}, L).")
        if exclude.numel():
            low, high = (int(v) for v in torch.aminmax(exclude))
            if low < 0 or high >= num_items:
                raise ValueError(
                    f"exclude holds ids {low} … {high}; they must be 0 … {num_items - 1}."
                )


def columns_of(ids: Tensor, num_items: int) -> Tensor:
    """Return for each internal id its place in ``ids``, or far below zero: (num_items,) int64."""
    column = ids.new_full((num_items,), -(2**62))
    column[ids] = torch.arange(len(ids), device=ids.device)
    return column


def select_rows(values: Tensor, ids: Tensor) -> Tensor:
    """Return the rows ``ids`` (ascending, distinct); a view where they are one stretch."""
    if len(ids) and int(ids[-1]) - int(ids[0]) + 1 == len(ids):
        return values[int(ids[0]) : int(ids[-1]) + 1]
    return values[ids]


def pad_found(scores: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Widen to k columns and write -1 wherever the score is -inf."""
    missing = k - scores.shape[1]
    if missing > 0:
        scores = torch.nn.functional.pad(scores, (0, missing), value=NONE_SCORE)
        ids = torch.nn.functional.pad(ids, (0, missing), value=NONE_ID)
    return scores, ids.masked_fill(scores == NONE_SCORE, NONE_ID)


def _drop(scores: Tensor, columns: Tensor) -> None:
    """Set ``scores[b, columns[b, l]]`` to -inf, in place, where the column is in the block."""
    rows, place = ((columns >= 0) & (columns < scores.shape[1])).nonzero(as_tuple=True)
    scores[rows, columns[rows, place]] = NONE_SCORE
