"""Sorted buckets → the histories of a prepared data set: cut, counted, given their final ids."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from recsys.data.buckets import Bucket, Provisional
from recsys.data.features import (
    Codes,
    Encoded,
    StaticTable,
    standardise,
    write_table,
)
from recsys.data.folder import sha256
from recsys.data.split import cuts_by_time, cuts_leave_one_out
from recsys.schema import Feature, SplitSpec

Cuts = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class Cutter:
    """Cuts histories into training, validation and test events."""

    split: SplitSpec | None
    """None where nothing is held back: every event counts as training."""
    validation_time: int | None = None
    test_time: int | None = None
    targets: npt.NDArray[np.bool_] | None = None
    """Which provisional behavior codes may be targets of leave-one-out; None = all."""

    def __call__(self, bucket: Bucket) -> Cuts:
        """Return ``train_end`` and ``valid_end``, (users,) int32."""
        if self.split is None:
            lengths = np.diff(bucket.offsets).astype(np.int32)
            return lengths, lengths
        if self.validation_time is not None and self.test_time is not None:
            time = bucket.events["timestamp"].astype(np.int64, copy=False)
            return cuts_by_time(bucket.offsets, time, self.validation_time, self.test_time)
        if self.targets is None or "behavior" not in bucket.events:
            return cuts_leave_one_out(bucket.offsets)
        return cuts_leave_one_out(bucket.offsets, self.targets[bucket.events["behavior"]])


def save_sorted(path: Path, bucket: Bucket, cuts: Cuts) -> None:
    """Write a sorted bucket, its codes still provisional."""
    columns = {"user_id": bucket.user_ids}
    columns |= {name: large_lists(bucket.offsets, values) for name, values in bucket.events.items()}
    columns |= {"train_end": pa.array(cuts[0]), "valid_end": pa.array(cuts[1])}
    write_table(path, pa.table(columns))


def load_sorted(path: Path) -> tuple[Bucket, Cuts]:
    """Memory-map what ``save_sorted`` wrote."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    if not table.num_rows:
        nothing = {
            f.name: np.zeros(0, f.type.value_type.to_pandas_dtype())
            for f in table.schema
            if pa.types.is_large_list(f.type)
        }
        return Bucket(pa.array([], pa.large_string()), np.zeros(1, np.int64), nothing), _no_cuts()
    batch = table.to_batches()[0]
    events, offsets = {}, np.zeros(1, np.int64)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_large_list(column.type):
            offsets = column.offsets.to_numpy()
            events[name] = column.values.to_numpy()
    cuts = batch["train_end"].to_numpy(), batch["valid_end"].to_numpy()
    return Bucket(batch["user_id"], offsets, events), cuts


def _no_cuts() -> Cuts:
    return np.zeros(0, np.int32), np.zeros(0, np.int32)


def large_lists(offsets: npt.NDArray[np.int64], values: npt.NDArray[np.generic]) -> pa.Array:
    """A list column from values end to end and where each row starts."""
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))


@dataclass(slots=True)
class Tally:
    """What training sees, counted by provisional code; tallies of buckets add up."""

    items: npt.NDArray[np.int64]
    behaviors: npt.NDArray[np.int64]
    """Events of the training part; ``all_behaviors`` has those of every part. Here alone negative
    feedback counts."""
    all_behaviors: npt.NDArray[np.int64]
    features: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    sums: dict[str, tuple[int, float, float]] = field(default_factory=dict)
    """Of numeric event features: count, sum, sum of squares."""
    parts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    """Events of training, validation, test."""
    users: int = 0
    users_without_training: int = 0

    @staticmethod
    def empty(codes: Provisional, numeric: Sequence[str]) -> "Tally":
        """A tally of nothing, sized for all codes."""
        return Tally(
            items=np.zeros(len(codes.pairs) or len(codes.items), np.int64),
            behaviors=np.zeros(len(codes.behaviors), np.int64),
            all_behaviors=np.zeros(len(codes.behaviors), np.int64),
            features={n: np.zeros(len(m), np.int64) for n, m in codes.features.items()},
            sums=dict.fromkeys(numeric, (0, 0.0, 0.0)),
        )

    def merge(self, other: "Tally") -> None:
        """Add the counts of another tally over the same codes."""
        self.items += other.items
        self.behaviors += other.behaviors
        self.all_behaviors += other.all_behaviors
        for name, counts in other.features.items():
            self.features[name] += counts
        for name, sums in other.sums.items():
            mine = self.sums[name]
            self.sums[name] = (mine[0] + sums[0], mine[1] + sums[1], mine[2] + sums[2])
        self.parts += other.parts
        self.users += other.users
        self.users_without_training += other.users_without_training

    def add(self, bucket: Bucket, cuts: Cuts, *, skip: int | None = None) -> npt.NDArray[np.bool_]:
        """Count one bucket.

        Args:
            bucket: Sorted.
            cuts: Its ``train_end`` and ``valid_end``.
            skip: Provisional code of negative feedback, which teaches nothing of items and users.

        Returns:
            Which of its users have training events.
        """
        lengths = np.diff(bucket.offsets)
        self.users += len(lengths)
        if not len(lengths):
            return np.zeros(0, np.bool_)
        rows = bucket.rows
        place = np.arange(bucket.offsets[-1]) - bucket.offsets[rows]
        part = sum((place >= cut[rows] for cut in cuts), np.zeros(len(rows), np.int64))
        done = np.ones(len(rows), np.bool_)
        if skip is not None:
            done = bucket.events["behavior"] != skip
        self.parts += np.bincount(part[done], minlength=3)
        trained = (part == 0) & done
        known = np.bincount(rows[trained], minlength=len(lengths)) > 0
        self.users_without_training += int((~known).sum())
        self.items += np.bincount(bucket.events["item"][trained], minlength=len(self.items))
        if "behavior" in bucket.events:
            behavior = bucket.events["behavior"]
            size = len(self.behaviors)
            self.behaviors += np.bincount(behavior[part == 0], minlength=size)
            self.all_behaviors += np.bincount(behavior, minlength=size)
        for name, counts in self.features.items():
            values = bucket.events[f"event.{name}"][trained].astype(np.int64)
            counts += np.bincount(values[values >= 0], minlength=len(counts))  # noqa: PLW2901
        for name, (count, total, squares) in self.sums.items():
            numbers = bucket.events[f"event.{name}"][trained].astype(np.float64)
            numbers = numbers[np.isfinite(numbers)]
            self.sums[name] = (
                count + len(numbers),
                total + float(numbers.sum()),
                squares + float((numbers * numbers).sum()),
            )
        return known


@dataclass(frozen=True, slots=True)
class Finaliser:
    """Turns provisional codes into final ids and writes a bucket as ``dataset.py`` documents it."""

    items: Codes
    """Final id of each provisional item code."""
    item_domains: Codes | None
    """Final domain code of each provisional item code; None without domains."""
    behaviors: npt.NDArray[np.int8]
    """Final code of each provisional behavior; of length 1 where the log has no such column."""
    event_lookups: dict[str, Codes]
    event_features: tuple[Feature, ...]
    user_features: tuple[Feature, ...] = ()
    users: StaticTable | None = None
    user_columns: dict[str, Encoded] = field(default_factory=dict)

    def event_values(
        self, feature: Feature, values: npt.NDArray[np.generic]
    ) -> npt.NDArray[np.generic]:
        """Final codes int32 or numbers float32 of an event feature's provisional values."""
        if feature.kind == "categorical":
            codes: Codes = self.event_lookups[feature.name][values]
            return codes
        return standardise(values.astype(np.float64), feature)

    def table(self, bucket: Bucket, cuts: Cuts) -> pa.Table:
        """The final columns of one bucket.

        Args:
            bucket: Sorted, codes provisional.
            cuts: Its ``train_end`` and ``valid_end``.

        Returns:
            A table in the schema of ``recsys.data.dataset``.
        """
        events, offsets = bucket.events, bucket.offsets
        empty = np.zeros(0, np.int32)
        item = events.get("item", empty)
        behavior = (
            self.behaviors[events["behavior"]]
            if "behavior" in events
            else np.full(len(item), self.behaviors[0] if len(self.behaviors) else 0, np.int8)
        )
        columns: dict[str, pa.Array] = {
            "user_id": bucket.user_ids,
            "item": large_lists(offsets, self.items[item]),
            "timestamp": large_lists(offsets, events.get("timestamp", empty.astype(np.int64))),
            "behavior": large_lists(offsets, behavior),
        }
        if self.item_domains is not None:
            columns["domain"] = large_lists(offsets, self.item_domains[item].astype(np.int16))
        for feature in self.event_features:
            values = self.event_values(feature, events.get(f"event.{feature.name}", empty))
            columns[f"event.{feature.name}"] = large_lists(offsets, values)
        if self.user_features:
            rows = np.full(len(bucket.user_ids), -1, np.int64)
            if self.users is not None:
                rows = self.users.rows(bucket.user_ids.to_pylist())
            for feature in self.user_features:
                column = self.user_columns.get(feature.name) or Encoded.nothing(feature)
                columns[f"user.{feature.name}"] = column.gather(rows, large=True)
        columns |= {"train_end": pa.array(cuts[0]), "valid_end": pa.array(cuts[1])}
        return pa.table(columns)


def write_histories(folder: Path, index: int, table: pa.Table) -> tuple[str, str]:
    """Write one bucket of final histories.

    Args:
        folder: The data set.
        index: The bucket.
        table: What ``Finaliser.table`` returned.

    Returns:
        Relative path and SHA-256.
    """
    name = f"histories/{index:05d}.arrow"
    write_table(folder / name, table)
    return name, sha256(folder / name)
