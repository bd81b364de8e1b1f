import datetime as dt
import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.files import list_files
from recsys.data.parse import unit_of
from recsys.data.read import EventReader, unit_of_column
from recsys.schema import ColumnSpec

DAY = dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
DAY_S = 1_704_164_645
NO_BEHAVIOR = ColumnSpec(behavior=None)


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def reader(*paths: Path | str, columns: ColumnSpec = NO_BEHAVIOR, **options: Any) -> EventReader:
    bad = options.get("on_bad_file", "stop")
    return EventReader(list_files([str(p) for p in paths], on_bad_file=bad), columns, **options)


def text(column: pa.Array) -> list[str]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return [str(v) for v in column.to_pylist()]


def read(
    *paths: Path | str, **options: Any
) -> tuple[list[tuple[str, str, int]], list[dict[str, Any]]]:
    """Good rows as (user, item, microseconds), and the rejects."""
    good, bad = [], []
    for batch in reader(*paths, **options):
        times = batch.time if batch.time is not None else batch.order
        assert times is not None
        good += list(zip(text(batch.user), text(batch.item), times.tolist(), strict=True))
        bad += batch.rejects.to_pylist()
    return good, bad


def reasons(rejects: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(r["row"], r["reason"]) for r in rejects]


# --- ids and times in every form -----------------------------------------------------------------


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([7, 12], pa.int64()),
        pa.array([7, 12], pa.uint8()),
        pa.array([7, 12], pa.uint64()),
        pa.array(["7", "12"], pa.string()),
        pa.array(["7", "12"], pa.large_string()),
        pa.array(["7", "12"]).dictionary_encode(),
        pa.array([7, 12]).dictionary_encode(),
        pa.array([7.0, 12.0], pa.float64()),
        pa.array([Decimal(7), Decimal(12)], pa.decimal128(10, 0)),
    ],
    ids=lambda ids: str(ids.type),
)
def test_ids_of_every_type_become_the_same_text(tmp_path: Path, ids: pa.Array) -> None:
    path = write(tmp_path / "e.parquet", user_id=ids, item_id=ids, timestamp=[1, 2])
    assert read(path)[0] == [("7", "7", 10**6), ("12", "12", 2 * 10**6)]


def test_integers_in_one_file_and_strings_in_the_next_are_the_same_ids(tmp_path: Path) -> None:
    write(tmp_path / "log" / "a.parquet", user_id=[1, 2], item_id=["x", "y"], timestamp=[5, 6])
    write(tmp_path / "log" / "b.parquet", user_id=["1", "z"], item_id=[8, 9], timestamp=[7, 8])
    good, _ = read(tmp_path / "log")
    assert [g[:2] for g in good] == [("1", "x"), ("2", "y"), ("1", "8"), ("z", "9")]


@pytest.mark.parametrize(
    ("column", "microseconds"),
    [
        (pa.array([DAY], pa.timestamp("us", tz="UTC")), DAY_S * 10**6),
        (pa.array([DAY], pa.timestamp("ms", tz="Europe/Paris")), DAY_S * 10**6),
        (pa.array([DAY.replace(tzinfo=None)], pa.timestamp("ns")), DAY_S * 10**6),
        (pa.array([DAY.date()], pa.date32()), (DAY_S - 11045) * 10**6),
        (pa.array([DAY_S], pa.int32()), DAY_S * 10**6),
        (pa.array([DAY_S * 1000 + 7]), (DAY_S * 1000 + 7) * 1000),
        (pa.array([DAY_S * 10**6 + 7]), DAY_S * 10**6 + 7),
        (pa.array([DAY_S * 10**9 + 7999]), DAY_S * 10**6 + 7),
        (pa.array([DAY_S * 10**9], pa.uint64()), DAY_S * 10**6),
        (pa.array([DAY_S + 0.25]), DAY_S * 10**6 + 250_000),
        (pa.array(["2024-01-02T03:04:05Z"]), DAY_S * 10**6),
        (pa.array(["2024-01-02 04:04:05+01:00"]), DAY_S * 10**6),
        (pa.array([" 2024-01-02 03:04:05.5 "]), DAY_S * 10**6 + 500_000),
        (pa.array(["2024-01-02"]), (DAY_S - 11045) * 10**6),
        (pa.array([str(DAY_S)]), DAY_S * 10**6),
        (pa.array([str(DAY_S * 1000)]), DAY_S * 10**6),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_times_of_every_type_become_microseconds(
    tmp_path: Path, column: pa.Array, microseconds: int
) -> None:
    path = write(tmp_path / "e.parquet", user_id=["u"], item_id=["i"], timestamp=column)
    assert read(path) == ([("u", "i", microseconds)], [])


def test_the_unit_is_found_file_by_file_and_stated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "log" / "a.parquet", user_id=[1], item_id=[1], timestamp=[DAY_S])
    write(tmp_path / "log" / "b.parquet", user_id=[1], item_id=[1], timestamp=[DAY_S * 1000 + 1])
    source = reader(tmp_path / "log")
    with caplog.at_level(logging.INFO):
        times = [int(t) for b in source if b.time is not None for t in b.time]
    assert times == [DAY_S * 10**6, DAY_S * 10**6 + 1000]
    assert source.units == {"s": 1, "ms": 1}
    assert "b.parquet: numbers in 'timestamp' read as milliseconds" in caplog.text


def test_a_declared_unit_overrides_the_guess(tmp_path: Path) -> None:
    path = write(tmp_path / "e.parquet", user_id=[1], item_id=[1], timestamp=[5000])
    assert read(path, timestamp_unit="ms")[0] == [("1", "1", 5_000_000)]


@pytest.mark.parametrize("statistics", [True, False])
def test_the_unit_is_that_of_the_file_not_of_its_first_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, statistics: bool
) -> None:
    times = [0, 5, 6, *range(DAY_S * 1000, DAY_S * 1000 + 27)]
    path = tmp_path / "e.parquet"
    table = pa.table({"user_id": [1] * 30, "item_id": [1] * 30, "timestamp": times})
    pq.write_table(table, path, row_group_size=3, write_statistics=statistics)
    source = reader(path, batch_rows=3)
    with caplog.at_level(logging.WARNING):
        found = [int(t) for b in source if b.time is not None for t in b.time]
    assert source.units == {"ms": 1}
    assert found == [t * 1000 for t in times]
    assert "only 93.1% of the numbers in 'timestamp' look like milliseconds" in caplog.text


def test_statistics_that_agree_decide_without_a_look_at_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "e.parquet", timestamp=pa.array([DAY_S * 1000, DAY_S * 1001]))
    with pq.ParquetFile(path) as parquet:
        monkeypatch.delattr(pq.ParquetFile, "iter_batches")
        assert unit_of_column(parquet, "timestamp") == ("ms", 1.0)


def test_numbers_that_are_all_missing_are_read_as_seconds(tmp_path: Path) -> None:
    path = write(tmp_path / "e.parquet", timestamp=pa.array([None, None], pa.int64()))
    with pq.ParquetFile(path) as parquet:
        assert unit_of_column(parquet, "timestamp") == ("s", 1.0)


@pytest.mark.parametrize(
    ("magnitude", "unit"),
    [(0, "s"), (1.7e9, "s"), (1.7e12, "ms"), (1.7e15, "us"), (1.7e18, "ns")],
)
def test_units_by_magnitude(magnitude: float, unit: str) -> None:
    assert unit_of(magnitude) == unit


# --- rows that cannot be used --------------------------------------------------------------------


def test_every_bad_row_has_its_reason_file_and_row(tmp_path: Path) -> None:
    path = write(
        tmp_path / "e.parquet",
        user_id=["a", None, "", "d", "e", "f", "g"],
        item_id=["x", "x", "x", None, "", "x", "x"],
        timestamp=pa.array([1, 1, 1, 1, 1, None, -5]),
    )
    good, bad = read(path)
    assert good == [("a", "x", 10**6)]
    assert reasons(bad) == [
        (1, "null_user_id"), (2, "empty_user_id"), (3, "null_item_id"), (4, "empty_item_id"),
        (5, "null_timestamp"), (6, "negative_timestamp"),
    ]  # fmt: skip
    assert bad[5] == {
        "file": "e.parquet", "row": 6, "reason": "negative_timestamp", "user_id": "g",
        "item_id": "x", "timestamp": "-5",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("user_id", pa.array([1, None, 3]), "null_user_id"),
        ("user_id", pa.array([1.0, float("nan"), 3.0]), "null_user_id"),
        ("user_id", pa.array([1.0, 2.5, 3.0]), "unparsable_user_id"),
        ("item_id", pa.array(["a", None, "c"]).dictionary_encode(), "null_item_id"),
        ("item_id", pa.array(["a", "", "c"]), "empty_item_id"),
        ("timestamp", pa.array(["2024-01-02", "yesterday", "2024-01-03"]), "unparsable_timestamp"),
        ("timestamp", pa.array(["2024-01-02", None, "2024-01-03"]), "null_timestamp"),
        ("timestamp", pa.array([1.0, float("nan"), 2.0]), "unparsable_timestamp"),
        ("timestamp", pa.array([DAY_S, 5_000_000_000, DAY_S]), "future_timestamp"),
        ("timestamp", pa.array([DAY_S, DAY_S * 1000, DAY_S]), "future_timestamp"),
        ("timestamp", pa.array([DAY_S, 2**63 - 1, DAY_S]), "future_timestamp"),
        ("timestamp", pa.array([DAY_S, -1, DAY_S]), "negative_timestamp"),
        ("behavior", pa.array(["click", None, "click"]), "null_behavior"),
        ("shop", pa.array(["de", None, "de"]), "null_domain"),
        ("step", pa.array([1, None, 2]), "null_order"),
    ],
)
def test_a_bad_value_rejects_its_row_and_no_other(
    tmp_path: Path, column: str, value: pa.Array, reason: str
) -> None:
    columns = {
        "user_id": [1, 2, 3], "item_id": [1, 2, 3], "timestamp": [DAY_S] * 3,
        "behavior": ["click"] * 3, "shop": ["de"] * 3, "step": [1, 2, 3],
    }  # fmt: skip
    path = write(tmp_path / "e.parquet", **(columns | {column: value}))
    spec = ColumnSpec(domain="shop", order="step")
    batches = list(reader(path, columns=spec))
    assert [r for b in batches for r in reasons(b.rejects.to_pylist())] == [(1, reason)]
    assert [len(b) for b in batches] == [2]
    assert text(batches[0].domain) == ["de", "de"]


def test_a_latest_time_can_be_set(tmp_path: Path) -> None:
    path = write(tmp_path / "e.parquet", user_id=[1, 2], item_id=[1, 2], timestamp=[10, 11])
    good, bad = read(path, max_time=10)
    assert [g[0] for g in good] == ["1"]
    assert reasons(bad) == [(1, "future_timestamp")]


def test_row_numbers_count_from_the_start_of_each_file(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / "log" / f"{name}.parquet", user_id=[1, 1, None], item_id=[1, 1, 1],
              timestamp=[1, 2, 3])  # fmt: skip
    _, bad = read(tmp_path / "log", batch_rows=2)
    assert [(r["file"], r["row"]) for r in bad] == [("log/a.parquet", 2), ("log/b.parquet", 2)]


# --- files that cannot be used -------------------------------------------------------------------


def good_file(path: Path) -> Path:
    return write(path, user_id=[1, 2], item_id=[3, 4], timestamp=[5, 6])


def truncated(path: Path) -> Path:
    good_file(path)
    path.write_bytes(path.read_bytes()[:-20])
    return path


def not_parquet(path: Path) -> Path:
    path.write_text("user_id,item_id,timestamp\n1,2,3\n")
    return path


def no_bytes(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def no_item_column(path: Path) -> Path:
    return write(path, user_id=[1], timestamp=[1])


def list_of_items(path: Path) -> Path:
    return write(path, user_id=[1], item_id=[[1, 2]], timestamp=[1])


def boolean_time(path: Path) -> Path:
    return write(path, user_id=[1], item_id=[1], timestamp=[True])


def doubled_column(path: Path) -> Path:
    one = pa.array([1])
    pq.write_table(
        pa.Table.from_arrays([one, one, one, one], ["user_id", "item_id", "item_id", "timestamp"]),
        path,
    )
    return path


BAD_FILES = [
    (truncated, "b.parquet is not a readable parquet file"),
    (not_parquet, "b.parquet is not a readable parquet file"),
    (no_bytes, "b.parquet is not a readable parquet file"),
    (no_item_column, r"b.parquet has no column 'item_id'.*--columns.item-id"),
    (list_of_items, "b.parquet column 'item_id' has type list.*integers or strings"),
    (boolean_time, "b.parquet column 'timestamp' has type bool"),
    (doubled_column, "b.parquet has 2 columns named 'item_id'"),
]


@pytest.mark.parametrize(("make", "message"), BAD_FILES)
def test_a_bad_file_among_good_ones_stops_and_is_named(
    tmp_path: Path, make: Any, message: str
) -> None:
    good_file(tmp_path / "a.parquet")
    make(tmp_path / "b.parquet")
    good_file(tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=message):
        reader(tmp_path)


@pytest.mark.parametrize(("make", "message"), BAD_FILES)
def test_a_bad_file_can_be_skipped_with_a_warning(
    tmp_path: Path, make: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    good_file(tmp_path / "a.parquet")
    make(tmp_path / "b.parquet")
    good_file(tmp_path / "c.parquet")
    good, bad = read(tmp_path, on_bad_file="skip")
    assert len(good) == 4
    assert bad == []
    assert "Skipped: " in caplog.text
    assert "b.parquet" in caplog.text


def damaged_in_the_middle(path: Path) -> Path:
    rng = np.random.default_rng(0)
    table = pa.table({n: rng.integers(0, 10**9, 4000) for n in ("user_id", "item_id", "timestamp")})
    pq.write_table(table, path, row_group_size=1000, use_dictionary=False)
    group = pq.ParquetFile(path).metadata.row_group(2).column(0)
    data = bytearray(path.read_bytes())
    start = group.data_page_offset
    data[start : start + 200] = b"\xff" * 200
    path.write_bytes(bytes(data))
    return path


def test_a_file_damaged_in_the_middle_stops_and_says_where(tmp_path: Path) -> None:
    path = damaged_in_the_middle(tmp_path / "d.parquet")
    with pytest.raises(ValueError, match="d.parquet is damaged after row 2000 of 4000"):
        read(path, batch_rows=1000)


def test_the_rows_of_a_damaged_file_that_is_skipped_are_all_accounted_for(tmp_path: Path) -> None:
    path = damaged_in_the_middle(tmp_path / "d.parquet")
    good, bad = read(path, batch_rows=1000, on_bad_file="skip")
    assert len(good) == 2000
    assert reasons(bad) == [(row, "unreadable_row") for row in range(2000, 4000)]


def test_an_empty_file_is_fine_among_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good_file(tmp_path / "a.parquet")
    empty = pa.table({n: pa.array([], pa.string()) for n in ("user_id", "item_id", "timestamp")})
    pq.write_table(empty, tmp_path / "b.parquet")
    assert len(read(tmp_path)[0]) == 2
    assert "b.parquet is empty (0 rows)" in caplog.text


def test_only_empty_files_are_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", user_id=pa.array([], pa.int64()),
          item_id=pa.array([], pa.int64()), timestamp=pa.array([], pa.int64()))  # fmt: skip
    with pytest.raises(ValueError, match="All 1 files of the log are empty"):
        reader(tmp_path)


def test_a_folder_without_parquet_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="holds no parquet file"):
        list_files([str(tmp_path)])


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent.parquet does not exist"):
        list_files([str(tmp_path / "absent.parquet")])


def test_a_file_given_twice_is_refused(tmp_path: Path) -> None:
    path = good_file(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a.parquet is given twice"):
        list_files([str(path), str(tmp_path)])


def test_files_are_read_in_the_order_of_their_names_and_hidden_ones_are_not(tmp_path: Path) -> None:
    for name in ("log/day=2/x.parquet", "log/day=1/y.parquet", "log/_meta/z.parquet",
                 "log/.tmp/z.parquet"):  # fmt: skip
        good_file(tmp_path / name)
    names = [f.name for f in list_files([str(tmp_path / "log")])]
    assert names == ["log/day=1/y.parquet", "log/day=2/x.parquet"]


def test_urls_of_pyarrow_and_of_fsspec_are_read(tmp_path: Path) -> None:
    path = good_file(tmp_path / "a.parquet")
    assert len(read(path.as_uri())[0]) == 2
    memory = fsspec.filesystem("memory")
    memory.pipe("/log/a.parquet", path.read_bytes())
    try:
        assert len(read("memory://log")[0]) == 2
    finally:
        memory.rm("/log", recursive=True)


def test_a_url_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="gopher://x/log cannot be opened"):
        list_files(["gopher://x/log"])


def test_a_behavior_column_may_be_absent_everywhere_but_not_in_one_file(tmp_path: Path) -> None:
    good_file(tmp_path / "a.parquet")
    assert not reader(tmp_path, columns=ColumnSpec()).has_behavior
    write(tmp_path / "b.parquet", user_id=[1], item_id=[1], timestamp=[1], behavior=["click"])
    with pytest.raises(ValueError, match="a.parquet has no column 'behavior'"):
        reader(tmp_path, columns=ColumnSpec())


ROW = st.tuples(
    st.one_of(st.none(), st.text(alphabet="ab7é", max_size=3)),
    st.one_of(st.none(), st.integers(-9, 99)),
    st.one_of(st.none(), st.integers(-3, 10**9)),
)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=12), batch=st.integers(1, 5))
def test_rows_in_are_rows_out_plus_rejects(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], batch: int
) -> None:
    users, items, times = zip(*rows, strict=True)
    path = write(
        tmp_path_factory.mktemp("log") / "e.parquet", user_id=pa.array(users, pa.string()),
        item_id=pa.array(items, pa.int64()), timestamp=pa.array(times, pa.int64()),
    )  # fmt: skip
    good, bad = read(path, batch_rows=batch)
    usable = [r for r in rows if r[0] and None not in r and r[2] >= 0]
    assert good == [(u, str(i), t * 10**6) for u, i, t in usable]
    assert len(good) + len(bad) == len(rows)
    assert len({r["row"] for r in bad}) == len(bad)
