"""Parquet logs → checked batches, streamed; rows that cannot be used are kept apart.

Ids are text: an integer ``7`` and a string ``"7"`` are the same id. Times become microseconds since
1970, so that logs in different units sort together. Every row that comes in goes out, either in a
batch or among the rejects with its file, row number and reason.

The unit of plain numbers is decided file by file: by the smallest and the largest one where the
file's statistics have them and they agree, else by a vote of all its rows. It is said in the log,
and so is a file whose numbers do not agree.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.data.files import LogFile, OnBadFile
from recsys.data.parse import (
    EXPECTED,
    REASONS,
    UNIT_LIMITS,
    UNITS,
    Reasons,
    as_text,
    decode,
    fits,
    is_plain_integer,
    is_text,
    read_ids,
    read_integers,
    read_labels,
    read_times,
    unit_of,
    value_type,
)
from recsys.schema import ColumnSpec

_LOG = logging.getLogger(__name__)

TimestampUnit = Literal["auto", "s", "ms", "us", "ns"]
BATCH_ROWS = 1 << 19
END_OF_TIME = 4_102_444_800
"""2100-01-01 in seconds: later times are taken for errors unless ``max_time`` says otherwise."""

REJECT_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("timestamp", pa.string()),
    ]
)
_UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


class LogBatch(Protocol):
    """What a reader yields: checked rows and, apart, those left out."""

    @property
    def rows(self) -> int:
        """Rows of the log that are used."""
        ...

    @property
    def rejects(self) -> pa.Table:
        """Rows left out, by ``REJECT_SCHEMA``; ``row`` counts from 0 inside the file."""
        ...


Batch = TypeVar("Batch", bound=LogBatch)


@dataclass
class LogReader(ABC, Generic[Batch]):
    """Streams the rows of many files; what the columns are for is up to the kind of log.

    Args:
        files: What ``list_files`` returned, in the order to read.
        max_time: Seconds since 1970; later rows are rejects.
        timestamp_unit: Unit of integer timestamps; ``"auto"`` decides by magnitude, file by file.
        on_bad_file: ``"skip"`` leaves out files whose columns do not fit, with a warning.
        batch_rows: Rows read at once.

    Raises:
        ValueError: If a file lacks a column, has it twice or in a type that cannot be read; the
            message names the file, the column and the way out.
    """

    files: Sequence[LogFile]
    _: KW_ONLY
    max_time: int = END_OF_TIME
    timestamp_unit: TimestampUnit = "auto"
    on_bad_file: OnBadFile = "stop"
    batch_rows: int = BATCH_ROWS
    skipped: int = 0
    """Files left out, known after construction."""
    units: dict[str, int] = field(default_factory=dict)
    """Files by the unit their timestamps were read in, complete once read."""

    flag: ClassVar[str] = "columns"
    """Flags that name columns start with it."""

    @abstractmethod
    def needed(self) -> dict[str, str]:
        """Column → what it is for, a key of ``EXPECTED``."""

    @abstractmethod
    def convert(self, raw: pa.RecordBatch, name: str, row: int, unit: str) -> Batch:
        """Check and convert rows.

        Args:
            raw: The needed columns.
            name: The file.
            row: Number of the first row in the file.
            unit: Of plain numbers in the time column.

        Returns:
            The usable rows, and the others as rejects.
        """

    def __post_init__(self) -> None:
        """Check every file's columns before any row is read."""
        usable = []
        for file in self.files:
            try:
                self._check(file)
                usable.append(file)
            except ValueError as error:
                if self.on_bad_file == "stop":
                    raise
                self.skipped += 1
                _LOG.warning("Skipped: %s", error)
        self.files = usable
        if not usable:
            raise ValueError("No file of the log has the columns asked for; see the warnings.")
        if not self.total_rows:
            raise ValueError(f"All {len(usable)} files of the log are empty (0 rows).")
        for file in usable:
            if not file.rows:
                _LOG.warning("%s is empty (0 rows).", file.name)

    @property
    def total_rows(self) -> int:
        """Rows of all files, good and bad."""
        return sum(f.rows for f in self.files)

    def all_integers(self, name: str) -> bool:
        """Whether a column, or the lists in it, hold integers in every file that has rows."""
        kinds = (value_type(f.schema.field(name).type) for f in self.files if f.rows)
        return all(is_plain_integer(kind) for kind in kinds)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches in file order."""
        for file in self.files:
            yield from self._read(file)

    def _check(self, file: LogFile) -> None:
        names = file.schema.names
        for name, role in self.needed().items():
            if name not in names:
                raise ValueError(
                    f"{file.name} has no column {name!r} for {role}; it has {names}. Name the "
                    f"right column (--{self.flag}.{role.replace('_', '-')}) or leave the file out."
                )
            if names.count(name) > 1:
                raise ValueError(
                    f"{file.name} has {names.count(name)} columns named {name!r}; rename or drop "
                    "all but one."
                )
            kind = file.schema.field(name).type
            if not fits(kind, role):
                raise ValueError(
                    f"{file.name} column {name!r} has type {kind}, which cannot be read as {role}; "
                    f"expected {EXPECTED[role]}."
                )

    def _read(self, file: LogFile) -> Iterator[Batch]:
        needed = self.needed()
        strings = [
            n for n, r in needed.items() if is_text(file.schema.field(n).type) and r != "timestamp"
        ]
        row = 0
        try:
            with file.open(strings) as parquet:
                unit = self._unit(file, parquet)
                for raw in parquet.iter_batches(self.batch_rows, columns=list(needed)):
                    yield self.convert(raw, file.name, row, unit)
                    row += raw.num_rows
        except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            message = f"{file.name} is damaged after row {row} of {file.rows}: {reason}."
            if self.on_bad_file == "stop":
                raise ValueError(
                    f'{message} Write it again, or pass on_bad_file="skip" to count its other '
                    "rows as rejects."
                ) from None
            _LOG.warning("%s Its other rows are rejects.", message)
            yield self._unreadable(file, row)

    def _unit(self, file: LogFile, parquet: pq.ParquetFile) -> str:
        """Unit of a file's timestamps: declared by the type or the caller, else by magnitude."""
        name = next((n for n, role in self.needed().items() if role == "timestamp"), None)
        if name is None or not file.rows:
            return "s"
        kind = file.schema.field(name).type
        if pa.types.is_timestamp(kind):
            unit = str(kind.unit)
        elif pa.types.is_date(kind) or is_text(kind):
            unit = "us"
        elif self.timestamp_unit != "auto":
            unit = self.timestamp_unit
        else:
            unit, share = unit_of_column(parquet, name)
            _LOG.info("%s: numbers in %r read as %s since 1970.", file.name, name,
                      _UNIT_NAMES[unit])  # fmt: skip
            if share < 0.99:
                _LOG.warning(
                    "%s: only %.1f%% of the numbers in %r look like %s; the others are read so "
                    "too. If the file mixes units, write it again in one.",
                    file.name, 100 * share, name, _UNIT_NAMES[unit],
                )  # fmt: skip
        self.units[unit] = self.units.get(unit, 0) + 1
        return unit

    def reject(
        self,
        raw: pa.RecordBatch,
        names: Sequence[str | None],
        reason: Reasons,
        file: str,
        row: int,
    ) -> pa.Table:
        """List the rows that have a reason.

        Args:
            raw: As read.
            names: Columns of user, item and time; None where there is none to tell.
            reason: Of each row.
            file: Its name.
            row: Number of the first row in the file.

        Returns:
            A table in ``REJECT_SCHEMA``.
        """
        bad = np.flatnonzero(reason)
        take = pa.array(bad)
        texts = [
            as_text(raw.column(c).take(take)) if c is not None else pa.nulls(len(bad), pa.string())
            for c in names
        ]
        reasons = pa.array(np.array(REASONS)[reason[bad]].tolist(), pa.string())
        files = pa.array([file] * len(bad), pa.string())
        return pa.table([files, pa.array(bad + row), reasons, *texts], schema=REJECT_SCHEMA)

    def _unreadable(self, file: LogFile, row: int) -> Batch:
        """An empty batch whose rejects are all rows of a damaged file from ``row`` on."""
        schema = pa.schema([file.schema.field(n) for n in self.needed()])
        size = file.rows - row
        empty = self.convert(pa.RecordBatch.from_pylist([], schema=schema), file.name, row, "s")
        nothing = pa.nulls(size, pa.string())
        files = pa.array([file.name] * size, pa.string())
        why = pa.array(["unreadable_row"] * size, pa.string())
        rows = pa.array(np.arange(row, file.rows))
        rejects = pa.table([files, rows, why, nothing, nothing, nothing], schema=REJECT_SCHEMA)
        return replace(empty, rejects=rejects)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Checked events in file order; every array has n rows."""

    user: pa.Array
    """Plain int64 where every file has integers, else dictionary-encoded strings; no nulls."""
    item: pa.Array
    """As ``user``."""
    time: npt.NDArray[np.int64] | None
    """Microseconds since 1970; None where the spec has no timestamp column."""
    order: npt.NDArray[np.int64] | None
    """The order column; None where the spec has none."""
    behavior: pa.Array | None
    """Strings; None where the log has no such column."""
    domain: pa.Array | None
    features: dict[str, pa.Array]
    """Declared event features as read."""
    rejects: pa.Table

    @property
    def rows(self) -> int:
        """Rows of the log that are used."""
        return len(self.user)

    def __len__(self) -> int:
        return len(self.user)


@dataclass
class EventReader(LogReader[EventBatch]):
    """Streams the events of many files; ``columns`` tells which column stands for what."""

    columns: ColumnSpec
    has_behavior: bool = field(default=False, init=False)
    integer_users: bool = field(default=False, init=False)
    integer_items: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Check every file's columns before any row is read."""
        name = self.columns.behavior
        self.has_behavior = name is not None and any(name in f.schema.names for f in self.files)
        super().__post_init__()
        self.integer_users = self.all_integers(self.columns.user_id)
        self.integer_items = self.all_integers(self.columns.item_id)

    def needed(self) -> dict[str, str]:
        """Column → what it is for."""
        spec = self.columns
        needed = {spec.user_id: "user_id", spec.item_id: "item_id"}
        optional = [(spec.timestamp, "timestamp"), (spec.order, "order"), (spec.domain, "domain")]
        if self.has_behavior:
            optional.append((spec.behavior, "behavior"))
        needed |= {name: role for name, role in optional if name is not None}
        return needed | dict.fromkeys(spec.event_features, "event_features")

    def convert(self, raw: pa.RecordBatch, name: str, row: int, unit: str) -> EventBatch:
        """Check and convert rows, see ``LogReader``."""
        spec = self.columns
        reason = np.zeros(raw.num_rows, np.uint8)
        user = read_ids(raw.column(spec.user_id), self.integer_users, reason, "user_id")
        item = read_ids(raw.column(spec.item_id), self.integer_items, reason, "item_id")
        time = order = None
        if spec.timestamp is not None:
            time = read_times(raw.column(spec.timestamp), unit, self.max_time, reason)
        if spec.order is not None:
            order = read_integers(raw.column(spec.order), reason, "null_order")
        behavior = domain = None
        if self.has_behavior and spec.behavior is not None:
            behavior = read_labels(raw.column(spec.behavior), reason, "null_behavior")
        if spec.domain is not None:
            domain = read_labels(raw.column(spec.domain), reason, "null_domain")
        features = {f: raw.column(f) for f in spec.event_features}
        if not reason.any():
            rejects = REJECT_SCHEMA.empty_table()
            return EventBatch(user, item, time, order, behavior, domain, features, rejects)
        good = np.flatnonzero(reason == 0)
        take = pa.array(good)
        told = (spec.user_id, spec.item_id, spec.timestamp or spec.order)
        return EventBatch(
            user=user.take(take),
            item=item.take(take),
            time=None if time is None else time[good],
            order=None if order is None else order[good],
            behavior=None if behavior is None else behavior.take(take),
            domain=None if domain is None else domain.take(take),
            features={f: column.take(take) for f, column in features.items()},
            rejects=self.reject(raw, told, reason, name, row),
        )


def unit_of_column(parquet: pq.ParquetFile, name: str) -> tuple[str, float]:
    """Guess the unit of a file's integer times since 1970 from all of them.

    Args:
        parquet: The open file.
        name: A column of numbers.

    Returns:
        The unit, and the share of the numbers that look like it; zeros and nulls do not count.
    """
    bounds = _bounds(parquet, name)
    if bounds is not None and bounds[0] >= 0 and unit_of(bounds[0]) == unit_of(bounds[1]):
        return unit_of(bounds[0]), 1.0
    votes = np.zeros(len(UNITS), np.int64)
    try:
        for batch in parquet.iter_batches(BATCH_ROWS, columns=[name]):
            numbers = pc.drop_null(decode(batch.column(0))).cast(pa.float64(), safe=False)
            size = np.abs(numbers.to_numpy(zero_copy_only=False))
            size = size[np.isfinite(size) & (size > 0)]
            which = np.searchsorted(UNIT_LIMITS, size, side="right")
            votes += np.bincount(which, minlength=len(UNITS))
    except (pa.ArrowException, OSError):
        pass  # the rows that can be read have voted; reading them says where the damage is
    winner = int(votes.argmax())
    return UNITS[winner], float(votes[winner] / max(1, votes.sum())) if votes.any() else 1.0


def _bounds(parquet: pq.ParquetFile, name: str) -> tuple[float, float] | None:
    """Smallest and largest value of a column by the file's statistics; None where one lacks."""
    metadata = parquet.metadata
    column = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == name)
    lows, highs = [], []
    for group in range(metadata.num_row_groups):
        found = metadata.row_group(group).column(column).statistics
        if found is None or not found.has_min_max:
            return None
        lows.append(float(found.min))
        highs.append(float(found.max))
    return (min(lows), max(highs)) if lows else None
