"""Ranked lists of many users, in internal ids: what the stages make and the score tables show."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recsys.retrieval.index import NONE_ID, NONE_SCORE

SOURCES = ("cascade", "retrieval", "popular")
"""Values of the ``source`` column: both stages, the first alone, or the fallback for users without
history."""
CASCADE, RETRIEVAL, POPULAR = range(3)


@dataclass(frozen=True, slots=True)
class RankedLists:
    """The best items of U users, best first."""

    ids: Tensor
    """Internal ids, (U, k) int64; -1 where no item was left."""
    scores: Tensor
    """(U, k) float32: the final score of ranked items, the inner product of others, and the
    training events of items that are popular."""
    source: Tensor
    """Places in ``SOURCES``, (U, k) int8."""
    retrieval: Tensor
    """Inner products, (U, k) float32; NaN where the source is ``popular``."""
    probabilities: Tensor
    """By task, (U, k, S) float32; NaN where the item was not ranked, S = 0 where nothing was."""

    @classmethod
    def empty(cls, users: int, k: int, tasks: int = 0) -> "RankedLists":
        """Lists without items."""
        return cls(
            torch.full((users, k), NONE_ID),
            torch.full((users, k), NONE_SCORE),
            torch.full((users, k), RETRIEVAL, dtype=torch.int8),
            torch.full((users, k), torch.nan),
            torch.full((users, k, tasks), torch.nan),
        )

    @classmethod
    def of(cls, ids: Tensor, scores: Tensor) -> "RankedLists":
        """What the retrieval found: internal ids and inner products, (U, k)."""
        empty = cls.empty(*ids.shape)
        return cls(ids, scores, empty.source, scores, empty.probabilities)

    @property
    def is_popular(self) -> Tensor:
        """(U,) bool: True where the fallback answered."""
        return self.source[:, 0] == POPULAR

    def first(self, k: int) -> "RankedLists":
        """The first k entries of each list."""
        return RankedLists(*(getattr(self, f.name)[:, :k] for f in fields(self)))

    def rows(self, at: Tensor) -> "RankedLists":
        """Lists of some users, (W,) int64."""
        return RankedLists(*(getattr(self, f.name)[at] for f in fields(self)))

    def put(self, at: Tensor, lists: "RankedLists") -> None:
        """Write the lists of some users, in place."""
        for f in fields(self):
            getattr(self, f.name)[at] = getattr(lists, f.name)

    def ordered(self, order: Tensor) -> "RankedLists":
        """Entries in another order.

        Args:
            order: Which entry comes at each place, (U, m) int64; -1 where none does.

        Returns:
            Lists of m entries.
        """
        users, m = order.shape
        found = RankedLists.empty(users, m, self.probabilities.shape[2])
        kept = order >= 0
        at = torch.arange(users)[:, None].expand(users, m)[kept], order[kept]
        for f in fields(self):
            getattr(found, f.name)[kept] = getattr(self, f.name)[at]
        found.source[self.is_popular] = POPULAR
        return found


def join(parts: Sequence[RankedLists]) -> RankedLists:
    """Stack lists of the same width, of at least one part."""
    return RankedLists(
        *(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(RankedLists))
    )


def arrange(lists: RankedLists, place: pa.Array, fallback: RankedLists) -> RankedLists:
    """Put users in another order.

    Args:
        lists: Of U users.
        place: Row of each user wanted, null where there is none, (W,).
        fallback: The list of one user, for those.

    Returns:
        The lists of the W users.
    """
    missing = place.is_null().to_numpy(zero_copy_only=False)
    rows = place.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    whole = join([lists, fallback])
    return whole.rows(torch.from_numpy(np.where(missing, len(lists.ids), rows)))
