"""Parquet logs → checked batches of events, streamed; rows that cannot be used are kept apart.

Ids are text: an integer ``7`` and a string ``"7"`` are the same id. Times become microseconds since
1970, so that logs in different units sort together. Every row that comes in goes out, either in a
batch or among the rejects with its file, row number and reason.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.files import LogFile, OnBadFile
from recsys.schema import ColumnSpec

_LOG = logging.getLogger(__name__)

TimestampUnit = Literal["auto", "s", "ms", "us", "ns"]
BATCH_ROWS = 1 << 19
END_OF_TIME = 4_102_444_800
"""2100-01-01 in seconds: later times are taken for errors unless ``max_time`` says otherwise."""

REASONS = (
    "",
    "null_user_id",
    "empty_user_id",
    "unparsable_user_id",
    "null_item_id",
    "empty_item_id",
    "unparsable_item_id",
    "null_timestamp",
    "unparsable_timestamp",
    "negative_timestamp",
    "future_timestamp",
    "null_order",
    "null_behavior",
    "null_domain",
    "unreadable_row",
)
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
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


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
    """Rows left out, by ``REJECT_SCHEMA``; ``row`` counts from 0 inside the file."""

    def __len__(self) -> int:
        return len(self.user)


@dataclass(slots=True)
class EventReader:
    """Streams the events of many files.

    Args:
        files: What ``list_files`` returned, in the order to read.
        columns: Which column stands for what.
        max_time: Seconds since 1970; later events are rejects.
        timestamp_unit: Unit of integer timestamps; ``"auto"`` decides by magnitude, file by file.
        on_bad_file: ``"skip"`` leaves out files whose columns do not fit, with a warning.

    Raises:
        ValueError: If a file lacks a column, has it twice or in a type that cannot be read; the
            message names the file, the column and the way out.
    """

    files: Sequence[LogFile]
    columns: ColumnSpec
    max_time: int = END_OF_TIME
    timestamp_unit: TimestampUnit = "auto"
    on_bad_file: OnBadFile = "stop"
    batch_rows: int = BATCH_ROWS
    skipped: int = 0
    """Files left out, known after construction."""
    units: dict[str, int] = field(default_factory=dict)
    """Files by the unit their timestamps were read in, complete once read."""
    integer_users: bool = False
    integer_items: bool = False
    has_behavior: bool = False

    def __post_init__(self) -> None:
        """Check every file's columns before any row is read."""
        name = self.columns.behavior
        self.has_behavior = name is not None and any(name in f.schema.names for f in self.files)
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
        self.integer_users = self._all_integers(self.columns.user_id)
        self.integer_items = self._all_integers(self.columns.item_id)

    @property
    def total_rows(self) -> int:
        """Rows of all files, good and bad."""
        return sum(f.rows for f in self.files)

    def __iter__(self) -> Iterator[EventBatch]:
        """Yield the batches in file order."""
        for file in self.files:
            yield from self._read(file)

    def _needed(self) -> dict[str, str]:
        """Column → what it is for."""
        spec = self.columns
        needed = {spec.user_id: "user_id", spec.item_id: "item_id"}
        optional = [(spec.timestamp, "timestamp"), (spec.order, "order"), (spec.domain, "domain")]
        if self.has_behavior:
            optional.append((spec.behavior, "behavior"))
        needed |= {name: role for name, role in optional if name is not None}
        return needed | dict.fromkeys(spec.event_features, "event_features")

    def _check(self, file: LogFile) -> None:
        names = file.schema.names
        for name, role in self._needed().items():
            if name not in names:
                raise ValueError(
                    f"{file.name} has no column {name!r} for {role}; it has {names}. "
                    f"Name the right column (--columns.{role.replace('_', '-')}) or leave the file "
                    "out."
                )
            if names.count(name) > 1:
                raise ValueError(
                    f"{file.name} has {names.count(name)} columns named {name!r}; rename or drop "
                    "all but one."
                )
            kind = file.schema.field(name).type
            if not _fits(kind, role):
                raise ValueError(
                    f"{file.name} column {name!r} has type {kind}, which cannot be read as {role}; "
                    f"expected {_EXPECTED[role]}."
                )

    def _all_integers(self, name: str) -> bool:
        return all(_is_plain_integer(f.schema.field(name).type) for f in self.files if f.rows)

    def _read(self, file: LogFile) -> Iterator[EventBatch]:
        strings = [
            n for n, r in self._needed().items() if _is_text(file.schema.field(n).type)
            and r != "timestamp"
        ]  # fmt: skip
        row, unit = 0, None
        try:
            with file.open(strings) as parquet:
                for raw in parquet.iter_batches(self.batch_rows, columns=list(self._needed())):
                    if unit is None and self.columns.timestamp is not None and raw.num_rows:
                        unit = self._unit(file, raw.column(self.columns.timestamp))
                    yield self._convert(raw, file.name, row, unit or "s")
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

    def _unit(self, file: LogFile, column: pa.Array) -> str:
        """Unit of a file's timestamps: declared by the type, else by magnitude of the median."""
        kind = column.type
        if pa.types.is_timestamp(kind):
            unit = str(kind.unit)
        elif pa.types.is_date(kind) or _is_text(kind):
            unit = "us"
        elif self.timestamp_unit != "auto":
            unit = self.timestamp_unit
        else:
            values = pc.drop_null(column).cast(pa.float64(), safe=False).to_numpy()
            values = values[np.isfinite(values)]
            middle = float(np.median(np.abs(values))) if len(values) else 0.0
            unit = unit_of(middle)
            _LOG.info(
                "%s: numbers in %r read as %s since 1970 (median %.0f).",
                file.name,
                self.columns.timestamp,
                {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}.get(unit, unit),
                middle,
            )
        self.units[unit] = self.units.get(unit, 0) + 1
        return unit

    def _convert(self, raw: pa.RecordBatch, name: str, row: int, unit: str) -> EventBatch:
        spec = self.columns
        reason = np.zeros(raw.num_rows, np.uint8)
        user = _ids(raw.column(spec.user_id), self.integer_users, reason, "user_id")
        item = _ids(raw.column(spec.item_id), self.integer_items, reason, "item_id")
        time = order = None
        if spec.timestamp is not None:
            time = _times(raw.column(spec.timestamp), unit, self.max_time, reason)
        if spec.order is not None:
            order = _integers(raw.column(spec.order), reason, "null_order")
        behavior = domain = None
        if self.has_behavior and spec.behavior is not None:
            behavior = _labels(raw.column(spec.behavior), reason, "null_behavior")
        if spec.domain is not None:
            domain = _labels(raw.column(spec.domain), reason, "null_domain")
        features = {f: raw.column(f) for f in spec.event_features}
        bad = np.flatnonzero(reason)
        if not len(bad):
            rejects = REJECT_SCHEMA.empty_table()
            return EventBatch(user, item, time, order, behavior, domain, features, rejects)
        rejects = self._rejects(raw, bad, reason[bad], name, row)
        good = np.flatnonzero(reason == 0)
        take = pa.array(good)
        return EventBatch(
            user=user.take(take),
            item=item.take(take),
            time=None if time is None else time[good],
            order=None if order is None else order[good],
            behavior=None if behavior is None else behavior.take(take),
            domain=None if domain is None else domain.take(take),
            features={f: column.take(take) for f, column in features.items()},
            rejects=rejects,
        )

    def _rejects(
        self,
        raw: pa.RecordBatch,
        bad: npt.NDArray[np.int64],
        reason: npt.NDArray[np.uint8],
        name: str,
        row: int,
    ) -> pa.Table:
        spec, take = self.columns, pa.array(bad)
        texts = [
            _as_text(raw.column(c).take(take)) if c is not None else pa.nulls(len(bad), pa.string())
            for c in (spec.user_id, spec.item_id, spec.timestamp or spec.order)
        ]
        names = pa.array(np.array(REASONS)[reason].tolist(), pa.string())
        files = pa.array([name] * len(bad), pa.string())
        return pa.table([files, pa.array(bad + row), names, *texts], schema=REJECT_SCHEMA)

    def _unreadable(self, file: LogFile, row: int) -> EventBatch:
        """An empty batch whose rejects are all rows of a damaged file from ``row`` on."""
        schema = pa.schema([file.schema.field(n) for n in self._needed()])
        size = file.rows - row
        no_rows = pa.RecordBatch.from_pylist([], schema=schema)
        empty = self._convert(no_rows, file.name, row, "s")
        nothing = pa.nulls(size, pa.string())
        files = pa.array([file.name] * size, pa.string())
        why = pa.array(["unreadable_row"] * size, pa.string())
        rows = pa.array(np.arange(row, file.rows))
        rejects = pa.table([files, rows, why, nothing, nothing, nothing], schema=REJECT_SCHEMA)
        return replace(empty, rejects=rejects)


def unit_of(magnitude: float) -> str:
    """Guess the unit of integer times since 1970 from a typical value.

    Args:
        magnitude: Median absolute value.

    Returns:
        ``"s"`` below 1e11 (the year 5138), ``"ms"`` below 1e14, ``"us"`` below 1e17, else ``"ns"``.
    """
    return (
        "s"
        if magnitude < 1e11
        else "ms"
        if magnitude < 1e14
        else "us"
        if magnitude < 1e17
        else "ns"
    )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_plain_integer(kind: pa.DataType) -> bool:
    return bool((pa.types.is_integer(kind) and kind != pa.uint64()) or pa.types.is_floating(kind))


_EXPECTED = {
    "user_id": "integers or strings",
    "item_id": "integers or strings",
    "timestamp": "a timestamp, a date, text or integers since 1970",
    "order": "integers",
    "behavior": "strings or integers",
    "domain": "strings or integers",
    "event_features": "strings, booleans or numbers (lists are not read from events)",
}


def _fits(kind: pa.DataType, role: str) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if role == "timestamp":
        return bool(number or pa.types.is_temporal(kind) and not pa.types.is_time(kind)
                    and not pa.types.is_duration(kind) or _is_text(kind))  # fmt: skip
    if role == "order":
        return bool(pa.types.is_integer(kind))
    if role == "event_features":
        return bool(number or _is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
                    or pa.types.is_decimal(kind))  # fmt: skip
    return bool(number or _is_text(kind) or pa.types.is_decimal(kind))


def _decode(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _as_text(column: pa.Array) -> pa.Array:
    return _decode(column).cast(pa.string(), safe=False)


def _mark(reason: npt.NDArray[np.uint8], where: pa.Array, name: str) -> None:
    """Give rows a reason; the first reason of a row stays."""
    mask = (
        np.asarray(where.to_numpy(zero_copy_only=False), bool)
        if isinstance(where, pa.Array)
        else where
    )
    reason[mask & (reason == 0)] = REASONS.index(name)


def _ids(column: pa.Array, integer: bool, reason: npt.NDArray[np.uint8], role: str) -> pa.Array:
    if column.null_count:
        _mark(reason, column.is_null(), f"null_{role}")
    if pa.types.is_dictionary(column.type) and column.dictionary.null_count:
        _mark(reason, _decode(column).is_null(), f"null_{role}")
    if pa.types.is_floating(column.type):
        values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        with np.errstate(invalid="ignore"):
            whole = (np.trunc(values) == values) & (np.abs(values) <= 2**53)
        _mark(reason, np.isnan(values), f"null_{role}")
        _mark(reason, ~whole, f"unparsable_{role}")
        column = pa.array(np.where(whole, values, 0).astype(np.int64))
    if integer:
        return (
            pc.fill_null(column.cast(pa.int64()), 0)
            if column.null_count
            else column.cast(pa.int64())
        )
    column = _labels(column, np.zeros(0, np.uint8), "")
    values = column.dictionary
    empty = pc.equal(values, "")
    if pc.any(empty).as_py():
        places = pc.fill_null(empty.take(column.indices), False)
        _mark(reason, places, f"empty_{role}")
    return column


def _labels(column: pa.Array, reason: npt.NDArray[np.uint8], null: str) -> pa.Array:
    """Strings, dictionary-encoded; nulls are marked where a reason is named."""
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).dictionary_encode()
    elif column.dictionary.type != pa.string():
        column = pa.DictionaryArray.from_arrays(column.indices, column.dictionary.cast(pa.string()))
    if null and (column.null_count or column.dictionary.null_count):
        _mark(reason, _decode(column).is_null(), null)
    return column


def _integers(column: pa.Array, reason: npt.NDArray[np.uint8], null: str) -> npt.NDArray[np.int64]:
    if column.null_count:
        _mark(reason, column.is_null(), null)
        column = pc.fill_null(column, 0)
    values: npt.NDArray[np.int64] = column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return values


def _times(
    column: pa.Array, unit: str, max_time: int, reason: npt.NDArray[np.uint8]
) -> npt.NDArray[np.int64]:
    """Microseconds since 1970; rows that have none are marked and hold 0."""
    column = _decode(column)
    if column.null_count:
        _mark(reason, column.is_null(), "null_timestamp")
    if _is_text(column.type):
        parsed = _parse_times(column)
        _mark(reason, parsed.is_null(), "unparsable_timestamp")
        column = parsed
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"), safe=False)
    if pa.types.is_floating(column.type):
        numbers = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        finite = np.isfinite(numbers)
        _mark(reason, ~finite, "unparsable_timestamp")
        scaled = np.where(finite, numbers, 0.0) * (10**6 / _PER_SECOND[unit])
        ticks = np.clip(scaled, -9e18, 9e18).astype(np.int64)
        unit = "us"
    else:
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        elif column.type == pa.uint64():
            column = pc.min_element_wise(column, pa.scalar(2**63 - 1, pa.uint64()))
        if column.null_count:
            column = pc.fill_null(column.cast(pa.int64()), 0)
        ticks = column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    future = ticks > max_time * _PER_SECOND[unit]
    negative = ticks < 0
    if future.any():
        _mark(reason, future, "future_timestamp")
    if negative.any():
        _mark(reason, negative, "negative_timestamp")
    if future.any() or negative.any():
        ticks = np.where(future | negative, 0, ticks)
    per_second = _PER_SECOND[unit]
    if per_second > 10**6:
        return ticks // (per_second // 10**6)
    return ticks if per_second == 10**6 else ticks * (10**6 // per_second)


def _parse_times(column: pa.Array) -> pa.Array:
    """ISO 8601 texts, with or without a time zone, or digits since 1970; anything else is null."""
    text = pl.Series("t", column.cast(pa.large_string())).str.strip_chars()
    digits = pl.when(text.str.contains(r"^[0-9]{9,19}$")).then(text).cast(pl.Int64, strict=False)
    size = pl.col("digits")
    micros = (
        pl.when(size < 10**11).then(size * 10**6)
        .when(size < 10**14).then(size * 1000)
        .when(size < 10**17).then(size)
        .otherwise(size // 1000)
    )  # fmt: skip
    numbers = pl.select(digits.alias("digits")).select(micros).to_series()
    zoned = text.str.to_datetime("%+", time_unit="us", time_zone="UTC", strict=False)
    parsed = [zoned.dt.replace_time_zone(None)]
    for form in ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f %Z"):
        parsed.append(text.str.to_datetime(form, time_unit="us", strict=False))
    parsed.append(text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")))
    parsed.append(numbers.cast(pl.Datetime("us")))
    frame = pl.DataFrame([s.alias(str(i)) for i, s in enumerate(parsed)])
    return frame.select(pl.coalesce(pl.all())).to_series().to_arrow()
