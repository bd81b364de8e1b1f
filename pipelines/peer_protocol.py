"""What the peer is tested on: leave-one-out by an order column, ranks by counting.

Written apart from our own evaluation, for an environment that has none of it: numpy and pandas are
all it needs. That both count alike is what makes a comparison fair, and what the tests show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

MISS = np.iinfo(np.int32).max
CUTOFFS = (1, 5, 10, 20, 50, 100)

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Events grouped by user, oldest first, with the leave-one-out bounds of each user."""

    user_ids: npt.NDArray[Any]
    """External id of each user code, ``(U,)``."""
    items: IntArray
    """Item code of each event, users one after the other, ``(E,)``."""
    starts: IntArray
    """First event of each user, ``(U,)``."""
    train_ends: IntArray
    """One past the last training event of each user, ``(U,)``."""
    evaluated: IntArray
    """Codes of the users with a validation and a test target, ``(V,)``."""
    train_users: IntArray
    """User code of each training event, ``(T,)``."""
    train_items: IntArray
    """Item code of each training event, ``(T,)``."""
    catalogue: IntArray
    """Item codes with a training event, ascending, ``(N,)``."""

    def history(self, user: int, *, test: bool) -> IntArray:
        """Item codes before the user's target; the test history holds the validation event."""
        return self.items[self.starts[user] : self.train_ends[user] + test]

    def target(self, user: int, *, test: bool) -> int:
        """Item code of the user's target."""
        return int(self.items[self.train_ends[user] + test])


def leave_one_out(user_ids: npt.ArrayLike, item_ids: npt.ArrayLike, order: npt.ArrayLike) -> Split:
    """Hold out the last two events of every user that has at least three.

    Args:
        user_ids: External user of each event, ``(E,)``.
        item_ids: External item of each event, ``(E,)``.
        order: Sorts a user's events, ascending; ties keep the row order, ``(E,)``.

    Returns:
        The split.

    Raises:
        ValueError: If there is no event or an ``order`` is missing.
    """
    order = np.asarray(order)
    if not len(order):
        raise ValueError("events (0 rows) must have at least one row.")
    if (missing := np.flatnonzero(pd.isna(order))).size:
        raise ValueError(f"order must be set in every event; row {missing[0]} has none.")
    users, items = np.asarray(user_ids), np.asarray(item_ids)
    external_users, user_codes = np.unique(users, return_inverse=True)
    _, item_codes = np.unique(items, return_inverse=True)
    rows = np.lexsort((order, user_codes))  # a stable sort, so that ties keep the row order
    user_codes = user_codes[rows].astype(np.int64)
    item_codes = item_codes[rows].astype(np.int64)
    counts = np.bincount(user_codes, minlength=len(external_users))
    ends = np.cumsum(counts)
    train_ends = np.where(counts >= 3, ends - 2, ends)
    training = np.arange(len(rows)) < train_ends[user_codes]
    return Split(
        user_ids=external_users,
        items=item_codes,
        starts=ends - counts,
        train_ends=train_ends,
        evaluated=np.flatnonzero(counts >= 3),
        train_users=user_codes[training],
        train_items=item_codes[training],
        catalogue=np.unique(item_codes[training]),
    )


def count_ranks(
    scores: FloatArray, targets: IntArray, seen_rows: IntArray, seen_columns: IntArray
) -> IntArray:
    """Count the items that score at least as high as each row's target.

    Args:
        scores: Scores over the catalogue, ``(B, N)``. Seen items are overwritten.
        targets: Catalogue column of each target, -1 if outside the catalogue, ``(B,)``.
        seen_rows: Row of each item to filter, ``(S,)``.
        seen_columns: Catalogue column of each item to filter, ``(S,)``.

    Returns:
        Ranks from 0, the best, ``(B,)``. ``MISS`` where the target cannot be recommended:
        outside the catalogue, filtered, or scored minus infinity.

    Raises:
        ValueError: If a score is NaN.
    """
    if np.isnan(scores).any():
        raise ValueError(f"scores ({int(np.isnan(scores).sum())} NaN) must be numbers.")
    scores[seen_rows, seen_columns] = -np.inf
    target_scores = scores[np.arange(len(scores)), np.maximum(targets, 0)]
    ranks = (scores >= target_scores[:, None]).sum(axis=1) - 1
    return np.where((targets < 0) | np.isneginf(target_scores), MISS, ranks)


def rank_metrics(ranks: IntArray) -> dict[str, float]:
    """Hit rate and NDCG at 10 and recall at ``CUTOFFS``, one target a user.

    Example:
        >>> metrics = rank_metrics(np.array([0, 2, 10, MISS]))
        >>> metrics["hr@10"], metrics["ndcg@10"], metrics["recall@20"]
        (0.5, 0.375, 0.75)
    """
    gains = np.where(ranks < 10, 1 / np.log2(ranks + 2.0), 0)
    metrics = {"hr@10": float(np.mean(ranks < 10)), "ndcg@10": float(np.mean(gains))}
    return metrics | {f"recall@{k}": float(np.mean(ranks < k)) for k in CUTOFFS}
