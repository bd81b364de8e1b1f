"""Columns as logged → ids, times, labels; rows that cannot be read are marked with a reason.

``reason`` is everywhere an array of one code a row, an index of ``REASONS``: 0 = usable. The first
reason of a row stays.
"""

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

Reasons = npt.NDArray[np.uint8]

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
    "null_request_id",
    "empty_request_id",
    "unparsable_request_id",
    "empty_list",
    "uneven_lists",
    "unreadable_row",
)
UNITS = ("s", "ms", "us", "ns")
UNIT_LIMITS = (10**11, 10**14, 10**17)
"""Times since 1970 from here on are in the next finer unit: 1e11 seconds are the year 5138."""
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def unit_of(magnitude: float) -> str:
    """Guess the unit of integer times since 1970 from a typical value.

    Args:
        magnitude: Absolute value.

    Returns:
        ``"s"`` below 1e11, ``"ms"`` below 1e14, ``"us"`` below 1e17, else ``"ns"``.
    """
    return UNITS[sum(magnitude >= limit for limit in UNIT_LIMITS)]


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a column holds strings, dictionary-encoded or not."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def is_plain_integer(kind: pa.DataType) -> bool:
    """Tell whether ids of a column fit into int64; floats are checked row by row."""
    return bool((pa.types.is_integer(kind) and kind != pa.uint64()) or pa.types.is_floating(kind))


EXPECTED = {
    "user_id": "integers or strings",
    "item_id": "integers or strings",
    "timestamp": "a timestamp, a date, text or integers since 1970",
    "order": "integers",
    "behavior": "strings or integers",
    "domain": "strings or integers",
    "event_features": "strings, booleans or numbers (lists are not read from events)",
    "numeric_features": "numbers, as in the events",
    "request_id": "integers or strings",
    "item_ids": "lists of integers or strings",
    "clicked_item": "integers or strings",
    "position": "integers",
    "label": "booleans or numbers",
    "labels": "lists of booleans or numbers",
}
"""What a column may be, by what it is for."""


def fits(kind: pa.DataType, role: str) -> bool:
    """Tell whether a column can be read as what it is for.

    Args:
        kind: Its type.
        role: A key of ``EXPECTED``.

    Returns:
        Whether it can.
    """
    if role in ("item_ids", "labels"):
        inside = value_type(kind)
        return inside is not kind and fits(inside, {"item_ids": "item_id"}.get(role, "label"))
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    number = bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
    if role == "timestamp":
        return bool(number or pa.types.is_temporal(kind) and not pa.types.is_time(kind)
                    and not pa.types.is_duration(kind) or is_text(kind))  # fmt: skip
    if role in ("order", "position"):
        return bool(pa.types.is_integer(kind))
    if role == "label":
        return number or bool(pa.types.is_boolean(kind) or pa.types.is_null(kind))
    if role == "numeric_features":
        return number or bool(pa.types.is_decimal(kind) or pa.types.is_null(kind))
    if role == "event_features":
        return bool(number or is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
                    or pa.types.is_decimal(kind))  # fmt: skip
    return bool(number or is_text(kind) or pa.types.is_decimal(kind))


def value_type(kind: pa.DataType) -> pa.DataType:
    """Type of a list's values; any other type as it is."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return kind.value_type if is_list or pa.types.is_fixed_size_list(kind) else kind


def decode(column: pa.Array) -> pa.Array:
    """Plain values of a column that may be dictionary-encoded."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def as_text(column: pa.Array) -> pa.Array:
    """A column as plain strings."""
    return decode(column).cast(pa.string(), safe=False)


def mark(reason: Reasons, where: pa.Array | npt.NDArray[np.bool_], name: str) -> None:
    """Give rows a reason; the first reason of a row stays.

    Args:
        reason: Of each row, changed in place.
        where: Which rows.
        name: One of ``REASONS``.
    """
    mask = (
        np.asarray(where.to_numpy(zero_copy_only=False), bool)
        if isinstance(where, pa.Array)
        else where
    )
    reason[mask & (reason == 0)] = REASONS.index(name)


def read_ids(column: pa.Array, integer: bool, reason: Reasons, role: str) -> pa.Array:
    """External ids; rows without a usable one are marked.

    Args:
        column: As logged.
        integer: Whether every file of the log has integers here.
        reason: Of each row, changed in place.
        role: What the ids are of, the end of the reasons' names.

    Returns:
        Plain int64 if ``integer``, else dictionary-encoded strings.
    """
    if column.null_count:
        mark(reason, column.is_null(), f"null_{role}")
    if pa.types.is_dictionary(column.type) and column.dictionary.null_count:
        mark(reason, decode(column).is_null(), f"null_{role}")
    if pa.types.is_floating(column.type):
        values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        with np.errstate(invalid="ignore"):
            whole = (np.trunc(values) == values) & (np.abs(values) <= 2**53)
        mark(reason, np.isnan(values), f"null_{role}")
        mark(reason, ~whole, f"unparsable_{role}")
        column = pa.array(np.where(whole, values, 0).astype(np.int64))
    if integer:
        return (
            pc.fill_null(column.cast(pa.int64()), 0)
            if column.null_count
            else column.cast(pa.int64())
        )
    column = read_labels(column, np.zeros(0, np.uint8), "")
    values = column.dictionary
    empty = pc.equal(values, "")
    if pc.any(empty).as_py():
        places = pc.fill_null(empty.take(column.indices), False)
        mark(reason, places, f"empty_{role}")
    return column


def read_labels(column: pa.Array, reason: Reasons, null: str) -> pa.Array:
    """Strings, dictionary-encoded; nulls are marked where a reason is named."""
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).dictionary_encode()
    elif column.dictionary.type != pa.string():
        column = pa.DictionaryArray.from_arrays(column.indices, column.dictionary.cast(pa.string()))
    if null and (column.null_count or column.dictionary.null_count):
        mark(reason, decode(column).is_null(), null)
    return column


def read_integers(column: pa.Array, reason: Reasons, null: str) -> npt.NDArray[np.int64]:
    """Integers, 0 where null; nulls are marked."""
    if column.null_count:
        mark(reason, column.is_null(), null)
        column = pc.fill_null(column, 0)
    values: npt.NDArray[np.int64] = column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return values


def read_times(
    column: pa.Array, unit: str, max_time: int, reason: Reasons
) -> npt.NDArray[np.int64]:
    """Microseconds since 1970; rows that have none are marked and hold 0."""
    column = decode(column)
    if column.null_count:
        mark(reason, column.is_null(), "null_timestamp")
    if is_text(column.type):
        parsed = _parse_times(column)
        mark(reason, parsed.is_null(), "unparsable_timestamp")
        column = parsed
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"), safe=False)
    if pa.types.is_floating(column.type):
        numbers = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        finite = np.isfinite(numbers)
        mark(reason, ~finite, "unparsable_timestamp")
        scaled = np.where(finite, numbers, 0.0) * (10**6 / PER_SECOND[unit])
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
    future = ticks > max_time * PER_SECOND[unit]
    negative = ticks < 0
    if future.any():
        mark(reason, future, "future_timestamp")
    if negative.any():
        mark(reason, negative, "negative_timestamp")
    if future.any() or negative.any():
        ticks = np.where(future | negative, 0, ticks)
    per_second = PER_SECOND[unit]
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
