"""Which events train, which validate, which test: by one global time, or each user's last two.

Global time (the default) is the honest split: everything before T1 trains, and nothing learnt from
a moment is tested on an earlier one. Leave-one-out holds back each user's last two events, whenever
they happened, so a model may read other users' future; it is here for comparison with papers.
"""

import logging
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from recsys.schema import ColumnSpec, SplitSpec

_LOG = logging.getLogger(__name__)
_BINS = 1 << 16

Times = npt.NDArray[np.int64]


def check_split(split: SplitSpec, columns: ColumnSpec) -> None:
    """Refuse a split that leaks or cannot be made; warn of leave-one-out.

    Args:
        split: The split asked for.
        columns: What the logs have.

    Raises:
        ValueError: If a time split lacks times or is ordered by a column that is not time, if T2 is
            not after T1, or if the fractions leave nothing to train on.
    """
    if columns.timestamp is None and columns.order is None:
        raise ValueError("columns.timestamp and columns.order are both None; one must be named.")
    if split.kind == "leave_one_out":
        _LOG.warning(
            "Leave-one-out leaks: the training part holds events of other users that are later "
            "than a test target. Use it for comparison with papers; else use a time split."
        )
        return
    if columns.timestamp is None or columns.order is not None:
        raise ValueError(
            f"split.kind 'time' must order events by time, not by columns.order "
            f"({columns.order!r}): an order column says nothing about other users' events. Name "
            "columns.timestamp alone, or use split.kind 'leave_one_out'."
        )
    one, two = split.validation_time, split.test_time
    if (one is None) != (two is None):
        raise ValueError(
            f"split.validation_time ({one}) and split.test_time ({two}) must be given together."
        )
    if one is not None and two is not None and two <= one:
        raise ValueError(
            f"split.test_time ({two}) must be later than split.validation_time ({one}): otherwise "
            "the test part would hold events from before the validation part."
        )
    for name in ("validation_fraction", "test_fraction"):
        value = getattr(split, name)
        if one is None and not 0 < value < 1:
            raise ValueError(f"split.{name} ({value}) must be between 0 and 1.")
    if one is None and split.validation_fraction + split.test_fraction >= 1:
        raise ValueError(
            f"split.validation_fraction ({split.validation_fraction}) and split.test_fraction "
            f"({split.test_fraction}) must leave something to train on: their sum must be below 1."
        )


def split_times(
    split: SplitSpec, read: Callable[[], Iterable[Times]], total: int
) -> tuple[int, int]:
    """Find T1 and T2 of a time split.

    Args:
        split: Times given, or fractions to cut at.
        read: Yields all event times, in pieces, each time it is called; seconds since 1970.
        total: How many there are.

    Returns:
        T1 and T2 in seconds: events before T1 train, those from T2 on test.

    Raises:
        ValueError: If the parts would not be three: too few events, or times too coarse.
    """
    if split.validation_time is not None and split.test_time is not None:
        return split.validation_time, split.test_time
    ranks = [
        int(total * (1 - split.validation_fraction - split.test_fraction)),
        int(total * (1 - split.test_fraction)),
    ]
    one, two = order_statistics(read, ranks)
    if two <= one:
        raise ValueError(
            f"The validation and test parts would both begin at {one}: {total} events are too few "
            "or their times too coarse for these fractions. Give larger ones, or "
            "split.validation_time and split.test_time."
        )
    return one, two


def order_statistics(read: Callable[[], Iterable[Times]], ranks: list[int]) -> list[int]:
    """Exact values at given ranks of numbers too many to hold: histograms, refined until exact.

    Args:
        read: Yields all numbers, in pieces, each time it is called.
        ranks: Positions in the sorted numbers, from 0.

    Returns:
        The number at each rank.

    Example:
        >>> order_statistics(lambda: [np.array([30, 10]), np.array([20])], [0, 2])
        [10, 30]
    """
    lows = [min(int(p.min()) for p in read() if len(p))] * len(ranks)
    highs = [max(int(p.max()) for p in read() if len(p))] * len(ranks)
    below = [0] * len(ranks)
    while any(low < high for low, high in zip(lows, highs, strict=True)):
        widths = [-(-(high - low + 1) // _BINS) for low, high in zip(lows, highs, strict=True)]
        counts = [np.zeros(_BINS, np.int64) for _ in ranks]
        for piece in read():
            for i, (low, high, width) in enumerate(zip(lows, highs, widths, strict=True)):
                inside = piece[(piece >= low) & (piece <= high)]
                counts[i] += np.bincount((inside - low) // width, minlength=_BINS)
        for i, (rank, width) in enumerate(zip(ranks, widths, strict=True)):
            reached = below[i] + np.cumsum(counts[i])
            place = int(np.searchsorted(reached, rank, side="right"))
            below[i] = int(reached[place - 1]) if place else below[i]
            lows[i] += place * width
            highs[i] = min(highs[i], lows[i] + width - 1)
    return lows


def cuts_by_time(
    offsets: npt.NDArray[np.int64], time: Times, validation_time: int, test_time: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Where each user's training and validation events end, for a time split.

    Args:
        offsets: Where each user's events start, (users + 1,).
        time: Seconds since 1970, ascending inside a user, (events,).
        validation_time: T1.
        test_time: T2.

    Returns:
        ``train_end`` and ``valid_end``, (users,) int32.
    """
    ends = []
    for moment in (validation_time, test_time):
        before = np.concatenate([[0], np.cumsum(time < moment)])
        ends.append((before[offsets[1:]] - before[offsets[:-1]]).astype(np.int32))
    return ends[0], ends[1]


def cuts_leave_one_out(
    offsets: npt.NDArray[np.int64], qualifies: npt.NDArray[np.bool_] | None = None
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Where each user's training and validation events end, for leave-one-out.

    The test part starts at the user's last event that qualifies as a target, the validation part at
    the one before. A user without two such events, or with nothing before them, only trains.

    Args:
        offsets: Where each user's events start, (users + 1,).
        qualifies: Which events may be targets, (events,); None = all.

    Returns:
        ``train_end`` and ``valid_end``, (users,) int32.

    Example:
        >>> train_end, valid_end = cuts_leave_one_out(np.array([0, 4, 6]))
        >>> train_end.tolist(), valid_end.tolist()
        ([2, 2], [3, 2])
    """
    lengths = np.diff(offsets)
    if qualifies is None:
        last, before = lengths - 1, lengths - 2
    else:
        last, before = _last_two(offsets, qualifies)
    held = before >= 1
    train_end = np.where(held, before, lengths).astype(np.int32)
    valid_end = np.where(held, last, lengths).astype(np.int32)
    return train_end, valid_end


def _last_two(
    offsets: npt.NDArray[np.int64], qualifies: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions, inside each user, of the last two marked events; -1 where there is none."""
    places = np.flatnonzero(qualifies)
    ends = np.searchsorted(places, offsets[1:])
    starts = np.searchsorted(places, offsets[:-1])
    padded = np.concatenate([places, [0]])
    found = [
        np.where(ends - starts > back, padded[ends - 1 - back] - offsets[:-1], -1)
        for back in (0, 1)
    ]
    return found[0], found[1]
