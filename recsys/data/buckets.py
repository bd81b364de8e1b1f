"""Events → histories, out of core: spread over buckets by user, then sort and group each bucket.

Pass 1 (``spill_events``) reads the log once and appends every event to the spill file of its
user's bucket, in log order; ``spill_log`` does so for any log of users' rows. Pass 2
(``sort_bucket``) takes one bucket at a time, orders it by (user, time, original row) and finds
where each user starts. Only one batch, then one bucket a thread, is ever in memory.

Ids travel as provisional codes (order of first sight) until the vocabularies are known.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

from recsys.data.features import Codes
from recsys.data.folder import rejects_folder
from recsys.data.idmap import DOMAIN_SEPARATOR, GrowingMap, stable_hash
from recsys.data.read import REJECT_SCHEMA, Batch, EventBatch, EventReader, LogReader
from recsys.schema import FeatureKind

EVENTS_PER_BUCKET = 1_500_000
MAX_BUCKETS = 512

Pseudonymise = Callable[[Sequence[str]], list[str]]
"""Different external user ids in, their pseudonyms out, in the same order."""

Spread = tuple[pa.RecordBatch, npt.NDArray[np.uint16]]
"""Rows to write, and the bucket of each."""

T = TypeVar("T")


def buckets_for(rows: int) -> int:
    """Number of buckets that keeps each near 1.5 million events.

    Args:
        rows: Events of the log.

    Returns:
        At least 1, at most 512.
    """
    return int(min(MAX_BUCKETS, max(1, -(-rows // EVENTS_PER_BUCKET))))


@dataclass(slots=True)
class Provisional:
    """Codes by order of first sight, for everything that has a vocabulary."""

    items: GrowingMap = field(default_factory=GrowingMap)
    behaviors: GrowingMap = field(default_factory=GrowingMap)
    domains: GrowingMap = field(default_factory=GrowingMap)
    features: dict[str, GrowingMap] = field(default_factory=dict)
    """Categorical event features; those that are not here are numeric."""
    pairs: GrowingMap = field(default_factory=GrowingMap)
    """(domain, item) where domains are declared; ``items`` then holds the bare ids."""

    def item_keys(self) -> list[str]:
        """External item keys in code order: ids, or domain and id."""
        items = self.items.texts()
        if not len(self.domains):
            return items
        domains = self.domains.texts()
        found = (divmod(int(pair), 1 << 32) for pair in self.pairs.values())
        return [f"{domains[d]}{DOMAIN_SEPARATOR}{items[i]}" for d, i in found]

    def encode_items(self, item: pa.Array, domain: pa.Array | None) -> Codes:
        """Codes of items, or of (domain, item) where domains are declared, (n,) int32."""
        codes = self.items.encode_column(item)
        if domain is None:
            return codes
        pair = (self.domains.encode_column(domain).astype(np.int64) << 32) | codes
        return self.pairs.encode_column(pa.array(pair))

    def encode_features(self, columns: dict[str, pa.Array]) -> dict[str, pa.Array]:
        """Event features by column name: codes int32, -1 = missing, or float64, NaN = missing."""
        found = {}
        for name, column in columns.items():
            if name in self.features:
                text = column if pa.types.is_dictionary(column.type) else column.cast(pa.string())
                values = self.features[name].encode_column(text)
            else:
                numbers = column.cast(pa.float64(), safe=False)
                values = pc.fill_null(numbers, float("nan")).to_numpy(zero_copy_only=False)
            found[f"event.{name}"] = pa.array(values)
        return found

    def item_domains(self) -> Codes:
        """Provisional domain of each provisional item code."""
        pairs = np.array(self.pairs.values(), np.int64)
        return (pairs >> 32).astype(np.int32)


@dataclass(slots=True)
class Spill:
    """What pass 1 left behind: one file a bucket, rows in log order."""

    folder: Path
    """The output; temporary files are in ``spill/``, rejects in ``rejects/``."""
    num_buckets: int
    codes: Provisional
    rows_in: int = 0
    rows_out: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    name: str = "events"
    """Of the log: names its files and those of its rejects."""

    def path(self, bucket: int) -> Path:
        """The file of one bucket."""
        return self.folder / "spill" / f"{self.name}-{bucket:05d}.log"

    def read(self, bucket: int) -> pa.Table:
        """Memory-map one bucket."""
        with pa.memory_map(str(self.path(bucket))) as source:
            return pa.ipc.open_stream(source).read_all()

    def take(self, bucket: int) -> pa.Table:
        """Memory-map one bucket and remove its file; the memory lives as long as the table."""
        table = self.read(bucket)
        self.path(bucket).unlink()
        return table

    def seconds(self) -> Iterator[npt.NDArray[np.int64]]:
        """Yield all event times in seconds, in pieces."""
        for bucket in range(self.num_buckets):
            for chunk in self.read(bucket)["time"].chunks:
                yield chunk.to_numpy() // 10**6

    def check_rejects(self, limit: float, out: Path) -> None:
        """Stop where too many rows cannot be used; their list is kept beside the target.

        Args:
            limit: Largest share of rows that may be rejected.
            out: The target of the job.

        Raises:
            ValueError: If no row is usable or the share is above the limit.
        """
        rejected = sum(self.rejects.values())
        if self.rows_out and rejected <= limit * self.rows_in:
            return
        kept = rejects_folder(out)
        shutil.rmtree(kept, ignore_errors=True)
        (self.folder / "rejects").rename(kept)
        reasons = ", ".join(f"{name} {count}" for name, count in sorted(self.rejects.items()))
        what = "" if self.name == "events" else f" of {self.name}"
        raise ValueError(
            f"{rejected} of {self.rows_in} rows{what} cannot be used ({reasons}), more than "
            f"max_reject_fraction ({limit}) allows. They are listed with file, row and reason in "
            f"{kept}; mend the logs or raise the limit."
        )


def spill_events(
    reader: EventReader,
    folder: Path,
    *,
    num_buckets: int,
    kinds: dict[str, FeatureKind],
    pseudonymise: Pseudonymise | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Spill:
    """Pass 1: read the log once, append each event to its user's bucket, keep rejects apart.

    Args:
        reader: The log.
        folder: The output, with a folder ``spill``; ``rejects/`` is made if there are any.
        num_buckets: Files to spread users over.
        kinds: Kind of each declared event feature, categorical or numeric.
        pseudonymise: Replaces user ids, those of the rejects too.
        progress: Called with ``"read"``, rows read and rows in all.

    Returns:
        Where the spill is, with counts and provisional codes.
    """
    codes = Provisional(features={n: GrowingMap() for n, k in kinds.items() if k == "categorical"})
    spill = Spill(folder, num_buckets, codes)
    renamed: dict[str, str] = {}

    def encode(batch: EventBatch) -> Spread:
        return _to_codes(batch, codes, num_buckets, pseudonymise, renamed)

    spill_log(reader, spill, encode, pseudonymise=pseudonymise, stage="read", progress=progress)
    return spill


def spill_log(
    reader: LogReader[Batch],
    spill: Spill,
    encode: Callable[[Batch], Spread],
    *,
    pseudonymise: Pseudonymise | None,
    stage: str,
    progress: Callable[[str, int, int], None] | None,
) -> None:
    """Read a log once, append each row to its user's bucket, keep rejects apart, count both.

    Args:
        reader: The log.
        spill: Where to; its counts are added to.
        encode: Turns a batch into the rows to write and the bucket of each.
        pseudonymise: Replaces user ids of the rejects.
        stage: What progress is told.
        progress: Called with the stage, rows read and rows in all.
    """
    writers: list[pa.ipc.RecordBatchStreamWriter] = []
    rejected: pq.ParquetWriter | None = None
    try:
        for batch in prefetch(reader):
            spill.rows_in += batch.rows + len(batch.rejects)
            spill.rows_out += batch.rows
            if len(batch.rejects):
                for reason, count in _counts(batch.rejects["reason"]):
                    spill.rejects[reason] = spill.rejects.get(reason, 0) + count
                if rejected is None:
                    folder = spill.folder / "rejects"
                    folder.mkdir(exist_ok=True)
                    rejected = pq.ParquetWriter(folder / f"{spill.name}.parquet", REJECT_SCHEMA)
                rejected.write_table(_hide(batch.rejects, pseudonymise))
            if batch.rows:
                table, bucket = encode(batch)
                if not writers:
                    for i in range(spill.num_buckets):
                        writers.append(pa.ipc.new_stream(str(spill.path(i)), table.schema))
                _scatter(table, bucket, writers)
            if progress is not None:
                progress(stage, spill.rows_in, reader.total_rows)
    finally:
        for writer in writers:
            writer.close()
        if rejected is not None:
            rejected.close()


def _counts(column: pa.ChunkedArray) -> list[tuple[str, int]]:
    return [(pair["values"], pair["counts"]) for pair in column.value_counts().to_pylist()]


def _hide(rejects: pa.Table, pseudonymise: Pseudonymise | None) -> pa.Table:
    if pseudonymise is None:
        return rejects
    ids = rejects["user_id"].to_pylist()
    known = [i for i in ids if i]
    names = dict(zip(known, pseudonymise(known), strict=True))
    hidden = pa.array([names.get(i) for i in ids], pa.string())
    return rejects.set_column(rejects.schema.get_field_index("user_id"), "user_id", hidden)


def _to_codes(
    batch: EventBatch,
    codes: Provisional,
    num_buckets: int,
    pseudonymise: Pseudonymise | None,
    renamed: dict[str, str],
) -> Spread:
    """One batch as plain columns, and the bucket of each row."""
    user, bucket = spread_users(batch.user, num_buckets, pseudonymise, renamed)
    item = codes.encode_items(batch.item, batch.domain)
    columns: dict[str, pa.Array] = {"user": user, "item": pa.array(item)}
    if batch.time is not None:
        columns["time"] = pa.array(batch.time)
    if batch.order is not None:
        columns["order"] = pa.array(batch.order)
    if batch.behavior is not None:
        behavior = codes.behaviors.encode_column(batch.behavior)
        columns["behavior"] = pa.array(behavior.astype(np.int16))
    columns |= codes.encode_features(batch.features)
    return pa.RecordBatch.from_pydict(columns), bucket


def spread_users(
    user: pa.Array, num_buckets: int, pseudonymise: Pseudonymise | None, renamed: dict[str, str]
) -> tuple[pa.Array, npt.NDArray[np.uint16]]:
    """Give every row its bucket and, if asked, its user's pseudonym.

    Args:
        user: External ids, plain integers or dictionary-encoded strings without nulls, (n,).
        num_buckets: How many there are.
        pseudonymise: Replaces the ids.
        renamed: Pseudonyms known so far, by id; grows.

    Returns:
        The ids, integers or large strings, and the buckets.
    """
    if pseudonymise is not None and not pa.types.is_dictionary(user.type):
        user = user.cast(pa.string()).dictionary_encode()
    if not pa.types.is_dictionary(user.type):
        return user, (stable_hash(user) % np.uint64(num_buckets)).astype(np.uint16)
    values = user.dictionary
    if pseudonymise is not None:
        texts = ["" if v is None else v for v in values.to_pylist()]
        new = [t for t in texts if t and t not in renamed]
        renamed.update(zip(new, pseudonymise(new), strict=True))
        values = pa.array([renamed.get(t, "") for t in texts], pa.string())
    values = pc.fill_null(values, "").cast(pa.large_string())
    places = user.indices.to_numpy()
    bucket = (stable_hash(values) % np.uint64(num_buckets)).astype(np.uint16)[places]
    return values.take(user.indices), bucket


def _scatter(
    table: pa.RecordBatch,
    bucket: npt.NDArray[np.uint16],
    writers: list[pa.ipc.RecordBatchStreamWriter],
) -> None:
    """Append each row to its bucket's file, keeping the order."""
    if len(writers) == 1:
        writers[0].write_batch(table)
        return
    table = table.take(pa.array(np.argsort(bucket, kind="stable")))
    ends = np.cumsum(np.bincount(bucket, minlength=len(writers)))
    for writer, start, end in zip(writers, np.concatenate([[0], ends[:-1]]), ends, strict=True):
        if end > start:
            writer.write_batch(table.slice(int(start), int(end - start)))


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bucket's events, user by user, chronological; codes are still provisional."""

    user_ids: pa.Array
    """External ids as large strings, (users,)."""
    offsets: npt.NDArray[np.int64]
    """Where each user's events start, (users + 1,)."""
    events: dict[str, npt.NDArray[np.generic]]
    """``item``, ``timestamp`` (seconds or the order column), ``behavior``, ``event.<f>``."""

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """The user of each event, counted from 0, (events,)."""
        return np.repeat(np.arange(len(self.user_ids)), np.diff(self.offsets))


def sort_bucket(table: pa.Table) -> Bucket:
    """Order one bucket by (user, order column or time, original row) and group it by user.

    Args:
        table: A bucket in log order.

    Returns:
        The same events, users ascending by id.
    """
    columns = {n: table[n].combine_chunks() for n in table.column_names}
    flat = {n: c.chunk(0) if isinstance(c, pa.ChunkedArray) else c for n, c in columns.items()}
    user = flat.pop("user")
    if pa.types.is_integer(user.type):
        key = user.to_numpy()
    else:
        user = user.dictionary_encode()
        rank = np.empty(len(user.dictionary), np.int64)
        rank[pc.sort_indices(user.dictionary).to_numpy()] = np.arange(len(rank))
        key = rank[user.indices.to_numpy()]
    events = {n: c.to_numpy(zero_copy_only=False) for n, c in flat.items()}
    time = events["order" if "order" in events else "time"]
    by_time = stable_order(time)
    order = by_time[stable_order(key[by_time])]
    key = key[order]
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else key[:0]
    offsets = np.append(starts, len(key)).astype(np.int64)
    ids = user.take(pa.array(order[starts]))
    ids = ids.dictionary_decode() if pa.types.is_dictionary(ids.type) else ids
    shown = events.pop("order", None)
    if "time" in events:
        shown = events.pop("time") // 10**6
    sorted_events = {n: v[order] for n, v in events.items()}
    assert shown is not None  # a spec has a timestamp or an order column
    sorted_events["timestamp"] = shown[order]
    return Bucket(ids.cast(pa.large_string()), offsets, sorted_events)


def stable_order(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Indices that sort integers; equal ones stay in their order.

    Key and position are packed into one integer where they fit, so that a plain sort (several times
    faster than a stable one) cannot confuse ties.

    Args:
        keys: (n,) int64.

    Returns:
        Indices, (n,) int64.

    Example:
        >>> stable_order(np.array([5, 3, 5, 3])).tolist()
        [1, 3, 0, 2]
    """
    size = len(keys)
    if size == 0 or np.all(keys[1:] >= keys[:-1]):
        return np.arange(size)
    bits = max(1, (size - 1).bit_length())
    low = int(keys.min())
    if int(keys.max()) - low >= 1 << (63 - bits):
        return np.argsort(keys, kind="stable")
    packed = ((keys - low) << bits) | np.arange(size)
    packed.sort()
    return packed & ((1 << bits) - 1)


def prefetch(source: Iterable[T]) -> Iterator[T]:
    """Read one element ahead in a thread, so that reading and working overlap.

    Args:
        source: Read in order, from one thread at a time.

    Yields:
        The same elements in the same order.
    """
    iterator, done = iter(source), object()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        ahead = pool.submit(next, iterator, done)
        while (element := ahead.result()) is not done:
            ahead = pool.submit(next, iterator, done)
            yield element  # type: ignore[misc]


def each_bucket(work: Callable[[int], T], num_buckets: int, threads: int) -> Iterator[T]:
    """Run ``work`` on every bucket, a few at a time, results in bucket order.

    Args:
        work: Takes the bucket's number.
        num_buckets: How many there are.
        threads: How many run at once; each holds one bucket in memory.

    Yields:
        The results.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="bucket") as pool:
        waiting = []
        for bucket in range(num_buckets):
            waiting.append(pool.submit(work, bucket))
            if len(waiting) > threads:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
