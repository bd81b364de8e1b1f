"""Rows of shown items → the lists of one bucket: who was shown what, when, and what became of it.

A list belongs to a row of the bucket's histories; lists of users without one are rejects. The order
of everything is fixed: lists by (user, time, first row of the log), items of a list by (position,
row of the log).
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.data.buckets import Bucket, Spill, stable_order
from recsys.data.features import write_table
from recsys.data.folder import sha256
from recsys.data.histories import Cuts, Finaliser, large_lists
from recsys.data.impressions import NO_POSITION, ROW_BITS, ImpressionReader
from recsys.data.read import REJECT_SCHEMA

Ints = npt.NDArray[np.int64]

NO_HISTORY = "user_without_history"


@dataclass(frozen=True, slots=True)
class ShownLists:
    """The lists of one bucket, R of them; codes are still provisional."""

    user: Ints
    """Row of the bucket's histories, (R,)."""
    timestamp: Ints
    """Seconds since 1970, (R,)."""
    offsets: Ints
    """Where the items of each list start, (R + 1,)."""
    item: npt.NDArray[np.int32]
    """Items of all lists end to end."""
    level: npt.NDArray[np.int8]
    position: npt.NDArray[np.int16]
    """Place in the list from 1; 0 unknown."""
    situation: dict[str, npt.NDArray[np.generic]]
    """``event.<f>`` of each list, (R,)."""
    strangers: pa.Table
    """``user``, ``row`` and ``time`` of the log's rows whose users have no history."""

    @property
    def owner(self) -> Ints:
        """The list of each item."""
        return np.repeat(np.arange(len(self.user)), np.diff(self.offsets))


def gather_lists(table: pa.Table, user_ids: pa.Array, *, first_position: int) -> ShownLists:
    """Put the shown items of one bucket together to lists.

    Args:
        table: The bucket as ``spill_impressions`` wrote it.
        user_ids: External ids of the bucket's histories, large strings.
        first_position: Where positions count from: 0 or, for anything else, 1.

    Returns:
        The lists.
    """
    column = {n: table[n].combine_chunks() for n in table.column_names}
    flat = {n: c.chunk(0) if isinstance(c, pa.ChunkedArray) else c for n, c in column.items()}
    found = pc.index_in(flat["user"].cast(pa.large_string()), value_set=user_ids)
    stranger = found.is_null()
    strangers = table.select(["user", "row", "time"]).filter(stranger)
    known = pc.invert(stranger)
    user = found.filter(known).to_numpy().astype(np.int64)
    rows = {n: c.filter(known).to_numpy() for n, c in flat.items() if n != "user"}
    # Lists: equal (user, request); the first row of each tells its situation.
    order = _sorted(user, rows["request"], rows["row"])
    changes = (np.diff(user[order]) != 0) | (np.diff(rows["request"][order]) != 0)
    starts = np.flatnonzero(np.concatenate([[True], changes])) if len(order) else order
    first = order[starts]
    second = np.minimum.reduceat(rows["time"][order], starts) // 10**6 if len(order) else order
    ranked = _sorted(user[first], second, rows["row"][first])
    place = np.empty(len(ranked), np.int64)
    place[ranked] = np.arange(len(ranked))
    lengths = np.diff(starts, append=len(order))
    # Items: by list, then by position where it is known, then by row.
    owner = np.repeat(place, lengths)
    logged = rows["position"][order].astype(np.int64)
    inside = _sorted(owner, np.where(logged == NO_POSITION, np.iinfo(np.int16).max, logged))
    position = np.where(logged == NO_POSITION, 0, logged + (first_position == 0))[inside]
    items = order[inside]
    return ShownLists(
        user=user[first][ranked],
        timestamp=second[ranked],
        offsets=np.concatenate([[0], np.cumsum(lengths[ranked])]).astype(np.int64),
        item=rows["item"][items],
        level=rows["level"][items],
        position=position.astype(np.int16),
        situation={n: v[first][ranked] for n, v in rows.items() if n.startswith("event.")},
        strangers=strangers,
    )


def with_skips(bucket: Bucket, lists: ShownLists, skip: int) -> Bucket:
    """Make events of the items that were shown and passed over.

    They happen when it is known: in the second of the list or, where that is later, of the first
    event on an item that was taken from it; there they stand behind all other events. Otherwise a
    log that stamps lists when they are shown would tell a click by the skips before it.

    Args:
        bucket: Sorted events.
        lists: What its users were shown.
        skip: Provisional code of the behavior.

    Returns:
        The bucket with more events; what a list does not tell of them is missing.
    """
    passed = np.flatnonzero(lists.level == 0)
    owner = lists.owner[passed]
    events, size = bucket.events, len(bucket.events["item"])
    known = _known_at(bucket, lists)[owner]
    user = np.concatenate([bucket.rows, lists.user[owner]])
    order = _sorted(user, np.concatenate([events["timestamp"], known]))
    more: dict[str, npt.NDArray[np.generic]] = {
        "item": lists.item[passed],
        "timestamp": known,
        "behavior": np.full(len(passed), skip, np.int16),
    }
    old = {"behavior": np.zeros(size, np.int16)} | events
    merged: dict[str, npt.NDArray[np.generic]] = {}
    for name, values in old.items():
        if name in lists.situation:
            added = lists.situation[name][owner]
        elif name in more:
            added = more[name]
        else:
            missing = np.nan if values.dtype == np.float64 else -1
            added = np.full(len(passed), missing, values.dtype)
        merged[name] = np.concatenate([values, added])[order]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(bucket.user_ids)))])
    return replace(bucket, offsets=offsets.astype(np.int64), events=merged)


def _known_at(bucket: Bucket, lists: ShownLists) -> Ints:
    """Second by which everything taken from each list has its first event, (R,)."""
    taken = np.flatnonzero(lists.level > 0)
    owner, size = lists.owner[taken], len(taken)
    user = np.concatenate([lists.user[owner], bucket.rows])
    item = np.concatenate([lists.item[taken], bucket.events["item"]]).astype(np.int64)
    time = np.concatenate([lists.timestamp[owner], bucket.events["timestamp"]])
    order = _sorted(user, item, time)
    is_event = order >= size
    ahead = np.where(is_event, np.arange(len(order)), len(order) - 1)
    ahead = order[np.minimum.accumulate(ahead[::-1])[::-1]]  # next event in this order
    same = (ahead >= size) & (user[ahead] == user[order]) & (item[ahead] == item[order])
    found = same & ~is_event
    known = lists.timestamp.copy()
    np.maximum.at(known, owner[order[found]], time[ahead[found]])
    return known


def _sorted(*keys: npt.NDArray[np.integer]) -> Ints:
    """Indices that sort by the keys, the first one first; equal rows stay in their order."""
    order = np.arange(len(keys[0]))
    for key in reversed(keys):
        order = order[stable_order(key[order].astype(np.int64, copy=False))]
    return order


def places(bucket: Bucket, lists: ShownLists) -> Ints:
    """Events of the user's history strictly before each list was shown, (R,)."""
    size = len(lists.user)
    user = np.concatenate([lists.user, bucket.rows])
    time = np.concatenate([lists.timestamp, bucket.events["timestamp"]])
    order = _sorted(user, time)  # of one second, lists come first
    is_event = order >= size
    found = np.empty(size, np.int64)
    found[order[~is_event]] = np.cumsum(is_event)[~is_event]
    return found - bucket.offsets[lists.user]


def parts(
    bucket: Bucket, cuts: Cuts, lists: ShownLists, place: Ints, times: tuple[int, int] | None
) -> npt.NDArray[np.int8]:
    """Part of each list: 0 training, 1 validation, 2 test, (R,).

    Args:
        bucket: The histories.
        cuts: ``train_end`` and ``valid_end``.
        lists: What their users were shown.
        place: What ``places`` returned.
        times: T1 and T2; None for leave-one-out, where a list is held back as soon as what follows
            it, or happens in its second, is.

    Returns:
        The parts.
    """
    part = np.zeros(len(place), np.int8)
    if times is not None:
        for moment in times:
            part += lists.timestamp >= moment
        return part
    starts = bucket.offsets[lists.user]
    length = bucket.offsets[lists.user + 1] - starts
    for cut in cuts:
        at = cut[lists.user].astype(np.int64)
        is_cut = at < length
        when = bucket.events["timestamp"][(starts + at)[is_cut]]
        part[is_cut] += (place >= at)[is_cut] | (lists.timestamp[is_cut] >= when)
    return part


@dataclass(slots=True)
class ShownSpill:
    """The log of lists, spread over buckets, on its way into a prepared data set."""

    reader: ImpressionReader
    spill: Spill
    skip: int | None
    """Provisional code of negative feedback; None where it is not asked for."""
    lists: int = 0
    shown: int = 0
    strangers: int = 0
    """Rows of the log whose users have no history."""

    def gather(self, index: int, user_ids: pa.Array) -> ShownLists:
        """The lists of one bucket, see ``gather_lists``."""
        first = self.reader.first_position
        return gather_lists(self.spill.read(index), user_ids, first_position=first)

    def write(
        self,
        index: int,
        bucket: Bucket,
        cuts: Cuts,
        finaliser: Finaliser,
        *,
        times: tuple[int, int] | None,
    ) -> "Written":
        """Write one bucket as ``dataset.py`` documents it, and its rejects; the spill file goes.

        Args:
            index: The bucket.
            bucket: Its sorted events.
            cuts: ``train_end`` and ``valid_end``.
            finaliser: Knows the final ids.
            times: T1 and T2; None for leave-one-out.

        Returns:
            What was written.
        """
        lists = self.gather(index, bucket.user_ids)
        self.spill.path(index).unlink()
        place = places(bucket, lists)
        columns = {
            "user": pa.array(lists.user.astype(np.int32)),
            "timestamp": pa.array(lists.timestamp),
            "place": pa.array(place.astype(np.int32)),
            "item": large_lists(lists.offsets, finaliser.items[lists.item]),
            "label": large_lists(lists.offsets, lists.level),
            "position": large_lists(lists.offsets, lists.position),
            "part": pa.array(parts(bucket, cuts, lists, place, times)),
        }
        for feature in finaliser.event_features:
            values = lists.situation.get(f"event.{feature.name}")
            if values is not None:
                columns[f"event.{feature.name}"] = pa.array(finaliser.event_values(feature, values))
        path = self.spill.folder / "impressions" / f"{index:05d}.arrow"
        path.parent.mkdir(exist_ok=True)
        write_table(path, pa.table(columns))
        return Written(
            f"impressions/{path.name}",
            sha256(path),
            len(lists.user),
            len(lists.item),
            self._reject(index, lists.strangers),
        )

    def add(self, written: "Written") -> None:
        """Count what was written of one bucket."""
        self.lists += written.lists
        self.shown += written.shown
        self.strangers += written.strangers

    def counts(self) -> dict[str, int]:
        """Counts for the manifest: rows in = rows out + rejected, by reason."""
        rejects = dict(self.spill.rejects)
        if self.strangers:
            rejects[NO_HISTORY] = self.strangers
        return {
            "impressions.rows_in": self.spill.rows_in,
            "impressions.rows_out": self.spill.rows_out - self.strangers,
            **{f"impressions.rejected.{name}": rejects[name] for name in sorted(rejects)},
            "impressions.items": self.shown,
            "impressions.clicked_elsewhere": self.reader.clicked_elsewhere,
        }

    def _reject(self, index: int, strangers: pa.Table) -> int:
        """Keep rows of users without history apart; returns how many rows of the log they are."""
        row, first = np.unique(strangers["row"].to_numpy(), return_index=True)
        if not len(row):
            return 0
        taken = strangers.take(pa.array(first))
        names = np.array([file.name for file in self.reader.files])
        seconds = pc.cast(pc.divide(taken["time"], 10**6), pa.string())
        columns = [
            pa.array(names[row >> ROW_BITS].tolist(), pa.string()),
            pa.array(row & ((1 << ROW_BITS) - 1)),
            pa.array([NO_HISTORY] * len(row), pa.string()),
            taken["user"].cast(pa.string()),
            pa.nulls(len(row), pa.string()),
            seconds,
        ]
        folder = self.spill.folder / "rejects"
        folder.mkdir(exist_ok=True)
        pq.write_table(
            pa.table(columns, schema=REJECT_SCHEMA), folder / f"impressions-{index:05d}.parquet"
        )
        return len(row)


@dataclass(frozen=True, slots=True)
class Written:
    """One file of lists."""

    name: str
    """Below the data set."""
    digest: str
    """SHA-256."""
    lists: int
    shown: int
    """Items of all lists."""
    strangers: int
    """Rows of the log whose users have no history."""
