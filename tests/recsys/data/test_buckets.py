from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.buckets import (
    GrowingMap,
    Provisional,
    Spill,
    buckets_for,
    each_bucket,
    prefetch,
    sort_bucket,
    spill_events,
    stable_order,
)
from recsys.data.files import list_files
from recsys.data.idmap import stable_hash
from recsys.data.read import EventReader
from recsys.schema import ColumnSpec


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from([-(2**62), -3, 0, 1, 2, 5, 2**40, 2**62]), max_size=20))
def test_stable_order_equals_a_stable_sort(keys: list[int]) -> None:
    array = np.array(keys, np.int64)
    assert stable_order(array).tolist() == np.argsort(array, kind="stable").tolist()


ROWS = st.lists(st.tuples(st.sampled_from("abç7"), st.integers(-2, 2)), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.booleans())
def test_a_bucket_is_sorted_by_user_time_and_original_row(
    rows: list[tuple[str, int]], integers: bool
) -> None:
    users = [ord(u) if integers else u for u, _ in rows]
    table = pa.table(
        {
            "user": pa.array(users, pa.int64() if integers else pa.large_string()),
            "item": np.arange(len(rows), dtype=np.int32),
            "time": pa.array([t * 10**6 for _, t in rows], pa.int64()),
        }
    )
    bucket = sort_bucket(table)
    expected = sorted(range(len(rows)), key=lambda i: (users[i], rows[i][1], i))
    assert bucket.events["item"].tolist() == expected
    assert bucket.events["timestamp"].tolist() == [rows[i][1] for i in expected]
    assert bucket.user_ids.to_pylist() == [str(u) for u in sorted(set(users))]
    lengths = np.diff(bucket.offsets).tolist()
    assert lengths == [users.count(u) for u in sorted(set(users))]


def test_each_user_is_in_the_bucket_of_its_hash_and_in_log_order(tmp_path: Path) -> None:
    users = [f"user{n % 13}" for n in range(60)]
    log = tmp_path / "e.parquet"
    pq.write_table(pa.table({"user_id": users, "item_id": range(60), "timestamp": range(60)}), log)
    (tmp_path / "spill").mkdir()
    reader = EventReader(list_files([str(log)]), ColumnSpec(), batch_rows=7)
    spill = spill_events(reader, tmp_path, num_buckets=4, kinds={})
    assert spill.rows_out == 60
    seen = 0
    for bucket in range(4):
        table = spill.take(bucket)
        assert set((stable_hash(table["user"].combine_chunks()) % 4).tolist()) <= {bucket}
        assert np.all(np.diff(table["time"].to_numpy()) > 0)
        seen += len(table)
    assert seen == 60
    assert list((tmp_path / "spill").iterdir()) == []


def test_item_keys_join_domain_and_id() -> None:
    codes = Provisional()
    codes.items.encode(pa.array(["a", "b"]))
    codes.domains.encode(pa.array(["x", "y"]))
    codes.pairs.encode(pa.array([(1 << 32) | 0, (0 << 32) | 1]))
    assert codes.item_keys() == ["y\u241fa", "x\u241fb"]
    assert codes.item_domains().tolist() == [1, 0]
    assert isinstance(codes.items, GrowingMap)


@pytest.mark.parametrize(
    ("rows", "buckets"), [(0, 1), (1_500_000, 1), (1_500_001, 2), (20_000_000, 14), (10**12, 512)]
)
def test_buckets_grow_with_the_log(rows: int, buckets: int) -> None:
    assert buckets_for(rows) == buckets


def test_reading_ahead_keeps_the_order_and_passes_errors_on() -> None:
    def broken() -> object:
        yield 1
        yield 2
        raise ValueError("boom")

    ahead = prefetch(broken())  # type: ignore[arg-type]
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ValueError, match="boom"):
        next(ahead)


@pytest.mark.parametrize("threads", [1, 3])
def test_results_of_buckets_come_in_order(threads: int) -> None:
    assert list(each_bucket(lambda i: i * i, 7, threads)) == [i * i for i in range(7)]


def test_an_error_in_one_bucket_ends_the_job() -> None:
    def work(index: int) -> int:
        if index == 2:
            raise ValueError(f"bucket {index}")
        return index

    with pytest.raises(ValueError, match="bucket 2"):
        list(each_bucket(work, 5, 2))


def test_a_log_within_the_limit_passes_without_a_rejects_folder(tmp_path: Path) -> None:
    spill = Spill(tmp_path, 1, Provisional(), rows_in=100, rows_out=99, rejects={"null_item_id": 1})
    spill.check_rejects(0.01, tmp_path / "out")
    (tmp_path / "rejects").mkdir()
    with pytest.raises(ValueError, match=r"1 of 100 rows cannot be used \(null_item_id 1\)"):
        spill.check_rejects(0.009, tmp_path / "out")
