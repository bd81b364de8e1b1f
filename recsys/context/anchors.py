"""Preference anchors of requests: groups of items that stand for the long past, and for now.

Each group has a provider. What other users did comes from the tables of ``recsys.data.anchors``,
which know completed time bins only; what the user did, from events before the request's place in
the history. So no provider can see the request's moment or anything later.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.context.config import AnchorName, ContextConfig
from recsys.context.history import Window
from recsys.data.anchors import AnchorTables
from recsys.data.dataset import Histories
from recsys.types import FIRST_BEHAVIOR, FIRST_ID, PAD

Ints = NDArray[Any]

OWN_EVENTS = 1000
"""Events before the window that ``own`` counts, the newest ones; bounds what a batch costs."""
HALF_LIFE_EVENTS = 2.0
"""A recent event so many events back counts half."""


@dataclass(frozen=True)
class Asked:
    """The requests of a batch, and what of the log is theirs to see."""

    tables: AnchorTables
    bucket: Histories
    length: int
    """Items wanted of a group."""
    num_recent: int
    first: Ints
    """Place of each user's first event in the flat columns, (B,)."""
    start: Ints
    """Place of the first event of each window, (B,)."""
    place: Ints
    """Place of the first event that a request does not see, (B, Q)."""
    row: Ints
    """Row of the tables that a request reads, (B, Q)."""
    query: Ints
    """Codes, (B, Q); ``PAD`` where none is known."""

    @cached_property
    def recent(self) -> NDArray[np.int64]:
        """The last events that count, newest first, (B, Q, R) item ids; ``PAD`` where none."""
        ago = np.arange(1, self.num_recent + 1)
        if self._all_count:
            at = self.place[..., None] - ago
        else:
            codes = tuple(np.flatnonzero(self.tables.event_weight).tolist())
            places = self.bucket.places_of(codes).numpy()
            index = np.searchsorted(places, self.place)[..., None] - ago
            at = np.full(index.shape, -1)
            at[index >= 0] = places[index[index >= 0]]
        return self._items(at, at >= self.first[:, None, None])

    @cached_property
    def past(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows with events before their window, and the items of these, newest first, (rows, W)."""
        number = np.minimum(self.start - self.first, OWN_EVENTS)
        rows = np.flatnonzero(number)
        ago = np.arange(1, number.max(initial=0) + 1)
        at, seen = self.start[rows, None] - ago, ago <= number[rows, None]
        if not self._all_count and len(rows):
            behavior = self.bucket.events["behavior"].values.numpy()[np.where(seen, at, 0)]
            seen &= self.tables.event_weight[behavior] > 0
        return rows, self._items(at, seen)

    @property
    def _all_count(self) -> bool:
        return bool(self.tables.event_weight[FIRST_BEHAVIOR:].all())

    def _items(self, at: Ints, seen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Items at places of the flat columns; ``PAD`` where not seen, or not in the catalogue."""
        values = self.bucket.events["item"].values.numpy()
        if not len(values):
            return np.full(at.shape, PAD, np.int64)
        item = np.where(seen, values[np.where(seen, at, 0)], PAD)
        return np.where(item >= FIRST_ID, item, PAD).astype(np.int64)


class Provider(Protocol):
    """One group of anchors."""

    def __call__(self, asked: Asked) -> Ints:
        """Answer a batch: distinct items, best first, (B, Q or 1, length), ``PAD`` at the end."""
        ...


def own(asked: Asked) -> Ints:
    """The user's most used items among events before the window; ties by the latest use."""
    rows, item = asked.past
    found = np.full((len(asked.start), 1, asked.length), PAD, np.int64)
    found[rows, 0] = best(item, np.ones(item.shape, np.float32), asked.length)
    return found


def trending(asked: Asked) -> Ints:
    """What is popular now."""
    return asked.tables.arrays["trending"][asked.row, : asked.length]


def category(asked: Asked) -> Ints:
    """What is popular now in the categories of the recent events.

    Places go to categories as D'Hondt gives seats to parties: each category's weight, the sum of
    its events', divided by 1, 2, 3, … in the order of its list.
    """
    code = asked.tables.coarse[asked.recent]
    ids = asked.tables.arrays["category"][asked.row[..., None], code, : asked.length]
    quotient = (1 / np.arange(1, ids.shape[-1] + 1)).astype(np.float32)
    return _merge(ids, quotient, asked.length)


def neighbours(asked: Asked) -> Ints:
    """The best neighbours of the recent items, their weights added up."""
    at = asked.row[..., None], asked.recent, slice(asked.length)
    arrays = asked.tables.arrays
    weight = arrays["neighbours_weight"][at].astype(np.float32)
    return _merge(arrays["neighbours"][at], weight, asked.length)


def query(asked: Asked) -> Ints:
    """What others who asked the same took."""
    return asked.tables.arrays["query"][asked.row, asked.query, : asked.length]


PROVIDERS: Mapping[AnchorName, Provider] = {
    "own": own,
    "trending": trending,
    "category": category,
    "neighbours": neighbours,
    "query": query,
}


def _merge(ids: Ints, weight: NDArray[np.float32], length: int) -> Ints:
    """Lists of the recent events, (B, Q, R, m), into one a request, later events weighing more."""
    batch, requests, recent, width = ids.shape
    fading = (0.5 ** (np.arange(recent) / HALF_LIFE_EVENTS)).astype(np.float32)
    score = np.broadcast_to(weight * fading[:, None], ids.shape)
    flat = batch * requests, recent * width
    return best(ids.reshape(flat), score.reshape(flat), length).reshape(batch, requests, length)


def best(item: Ints, score: NDArray[np.float32], length: int) -> NDArray[np.int64]:
    """Add up the scores of equal items of a row and keep the best.

    Args:
        item: Ids, (n, k); ``PAD`` is left out.
        score: Not negative, (n, k).
        length: Items wanted.

    Returns:
        Ids, best first, (n, length), ``PAD`` where there are fewer. Of equal sums the item that
        stands first in its row is first.

    Example:
        >>> scores = np.array([[1, 2, 2, 4]], np.float32)
        >>> best(np.array([[7, 8, 7, 0]]), scores, 3).tolist()
        [[7, 8, 0]]
    """
    rows, width = item.shape
    found = np.full((rows, length), PAD, np.int64)
    if not item.size:
        return found
    bits, slots = width.bit_length(), np.arange(width)
    # Numpy sorts plain integers by far the fastest: first item and slot in one, then sum and slot.
    by_item = np.sort(item.astype(np.int64) << bits | slots, axis=1)
    slot = by_item & ((1 << bits) - 1)
    starts = np.ones((rows, width), bool)
    starts[:, 1:] = (by_item[:, 1:] ^ by_item[:, :-1]) >> bits != 0
    score = np.take_along_axis(score * (item != PAD), slot, axis=1)
    sums = np.add.reduceat(score.ravel(), np.flatnonzero(starts))
    # Floats that are not negative are ordered as their bits are; a sum of 0 is -1 here.
    by_sum = np.zeros((rows, width), np.int64)
    by_sum[starts] = (~sums.view(np.int32)).astype(np.int64) << bits | slot[starts]
    by_sum.sort(axis=1)
    chosen = np.take_along_axis(item, by_sum[:, :length] & ((1 << bits) - 1), axis=1)
    found[:, : chosen.shape[1]] = np.where(by_sum[:, :length] < -1 << bits, chosen, PAD)
    return found


class AnchorReader:
    """Reads the anchors of requests.

    Args:
        tables: Of the data set that the requests are in, or of a model, whose tables answer now.
        config: Which groups, and how long.

    Raises:
        ValueError: If the tables lack a group, or their lists are shorter than asked for.
    """

    def __init__(self, tables: AnchorTables, config: ContextConfig) -> None:
        fitted = [name for name in config.anchors if name != "own"]
        missing = [name for name in fitted if name not in tables.info.names]
        if missing:
            raise ValueError(
                f"anchors {missing} have no tables; there are {list(tables.info.names)}. Prepare "
                f"the data with --anchors.names {' '.join(fitted)}."
            )
        if fitted and config.anchor_length > tables.info.length:
            raise ValueError(
                f"anchor_length ({config.anchor_length}) must not be above the {tables.info.length}"
                " items that the tables keep; prepare the data with a larger --anchors.length."
            )
        self._tables, self._config = tables, config

    @classmethod
    def open(cls, folder: Path | str, config: ContextConfig) -> Self:
        """Open the tables of a prepared data set, or of a model folder.

        Args:
            folder: The folder.
            config: Which groups, and how long.

        Returns:
            The reader.

        Raises:
            ValueError: If the tables are damaged or do not hold what ``config`` asks for.
        """
        return cls(AnchorTables.open(Path(folder)), config)

    def anchors(
        self,
        bucket: Histories,
        *,
        rows: Tensor,
        window: Window,
        place: Tensor,
        timestamp: Tensor,
        is_real: Tensor,
        query: Tensor | None = None,
    ) -> Tensor:
        """Read the anchors of a batch.

        Args:
            bucket: Where the users are.
            rows: The users, (B,) int64.
            window: The events of each that the prefix holds.
            place: Where in the bucket's flat columns the first event is that a request does not
                see, (B, Q) int64.
            timestamp: Moment of each request, seconds since 1970, (B, Q) int64.
            is_real: False for padded requests, (B, Q) bool.
            query: Code of each request's query, (B, Q) int64; None where none is known.

        Returns:
            Items, (B, Q, A) int64: the groups in the order of ``config.anchors``, each
            ``anchor_length`` wide, best first, ``PAD`` where it is short. No item is twice in a
            group; it may be in the history or in another group.
        """
        config, real = self._config, is_real.numpy()
        first = bucket.offsets[rows].numpy()
        asked = Asked(
            tables=self._tables,
            bucket=bucket,
            length=config.anchor_length,
            num_recent=config.anchor_recent,
            first=first,
            start=window.start.numpy(),
            place=np.where(real, place.numpy(), first[:, None]),
            row=self._tables.info.row_of(rows.numpy(), timestamp.numpy()),
            query=np.zeros(real.shape, np.int64) if query is None else query.numpy(),
        )
        found = np.zeros((*real.shape, len(config.anchors), config.anchor_length), np.int64)
        for number, name in enumerate(config.anchors):
            found[:, :, number] = PROVIDERS[name](asked)
        found[~real] = PAD
        return torch.from_numpy(found.reshape(*real.shape, -1))
