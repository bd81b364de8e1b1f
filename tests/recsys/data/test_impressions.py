"""Logs of shown lists in both shapes → rows of shown items, with every bad row kept apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data.files import list_files
from recsys.data.impressions import ImpressionReader
from recsys.schema import ColumnSpec, FeatureKind, ImpressionSpec

FUNNEL = ("click", "order")


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def reader(
    path: Path,
    columns: ColumnSpec | None = None,
    *,
    spec: ImpressionSpec | None = None,
    labels: tuple[str, ...] = FUNNEL,
    kinds: dict[str, FeatureKind] | None = None,
    **options: Any,
) -> ImpressionReader:
    return ImpressionReader(
        list_files([str(path)]), columns or ColumnSpec(), spec or ImpressionSpec(), labels,
        kinds or {}, **options,
    )  # fmt: skip


def shown(source: ImpressionReader) -> list[tuple[str, str, int, int, int]]:
    """User, item, second, level and position of every shown item."""
    found = []
    for batch in source:
        columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c
                   for c in (batch.user, batch.item)]  # fmt: skip
        found += [
            (str(u), str(i), int(t) // 10**6, int(level), int(p))
            for u, i, t, level, p in zip(
                *(c.to_pylist() for c in columns), batch.time, batch.level, batch.position,
                strict=True,
            )
        ]  # fmt: skip
    return found


def rejects(source: ImpressionReader) -> list[tuple[int, str]]:
    return [(r["row"], r["reason"]) for b in source for r in b.rejects.to_pylist()]


def lists_log(path: Path, **changes: Any) -> Path:
    columns = {"user_id": ["a", "b"], "timestamp": [10, 20], "item_ids": [[7, 8, 9], [8]],
               "clicked_item": [8, None]}  # fmt: skip
    return write(path, **(columns | changes))


def items_log(path: Path, **changes: Any) -> Path:
    columns = {"request_id": [1, 1, 2], "user_id": ["a", "a", "b"], "item_id": [7, 8, 8],
               "timestamp": [10, 10, 20], "click": [False, True, False]}  # fmt: skip
    return write(path, **(columns | changes))


def test_a_row_a_list_tells_positions_and_the_clicked_item(tmp_path: Path) -> None:
    source = reader(lists_log(tmp_path / "i.parquet"))
    assert shown(source) == [("a", "7", 10, 0, 1), ("a", "8", 10, 1, 2), ("a", "9", 10, 0, 3),
                             ("b", "8", 20, 0, 1)]  # fmt: skip
    assert source.total_shown == 4
    assert [b.rows for b in source] == [2]


def test_a_row_a_shown_item_has_its_own_label_and_position(tmp_path: Path) -> None:
    path = items_log(tmp_path / "i.parquet", position=pa.array([4, None, 0], pa.int32()))
    source = reader(path)
    assert shown(source) == [("a", "7", 10, 0, 4), ("a", "8", 10, 1, -1), ("b", "8", 20, 0, 0)]
    assert source.first_position == 0
    assert source.total_shown == 3
    (batch,) = list(source)
    assert batch.request[0] == batch.request[1] != batch.request[2]


@pytest.mark.parametrize(
    "order", [[True, None, False], [1, None, 0], [3.0, float("nan"), 0.0]], ids=str
)
def test_a_stronger_label_stands_for_the_weaker_ones(tmp_path: Path, order: list[Any]) -> None:
    path = items_log(tmp_path / "i.parquet", order=order)
    assert [level for *_, level, _ in shown(reader(path))] == [2, 1, 0]


def test_labels_of_a_list_are_lists(tmp_path: Path) -> None:
    path = lists_log(tmp_path / "i.parquet", click=[[1, 1, 0], [1]], order=[[0, 1, 0], [0]])
    assert [level for *_, level, _ in shown(reader(path))] == [1, 2, 0, 1]


def test_integers_and_texts_of_one_item_are_the_same(tmp_path: Path) -> None:
    path = lists_log(tmp_path / "i.parquet", clicked_item=["8", None])
    assert [level for *_, level, _ in shown(reader(path))] == [0, 1, 0, 0]


def test_a_missing_click_is_no_click_on_item_zero(tmp_path: Path) -> None:
    path = lists_log(
        tmp_path / "i.parquet", item_ids=[[0, 1], [0]],
        clicked_item=pa.array([float("nan"), None], pa.float64()),
    )  # fmt: skip
    source = reader(path)
    assert [level for *_, level, _ in shown(source)] == [0, 0, 0]
    assert source.clicked_elsewhere == 0


def test_a_click_outside_its_list_is_counted(tmp_path: Path) -> None:
    source = reader(lists_log(tmp_path / "i.parquet", clicked_item=[77, 8]))
    assert [level for *_, level, _ in shown(source)] == [0, 0, 0, 1]
    assert source.clicked_elsewhere == 1


def test_every_bad_list_has_its_reason_and_takes_nothing_else_along(tmp_path: Path) -> None:
    path = write(
        tmp_path / "i.parquet",
        user_id=["a", None, "c", "d", "e", "f", "g"],
        timestamp=[1, 1, None, 1, 1, 1, 1],
        item_ids=pa.array([[1], [2], [3], None, [], [4, None], [5, 6]], pa.list_(pa.int64())),
        click=[[1], [1], [1], [1], [], [0, 0], [0]],
    )
    source = reader(path)
    assert shown(source) == [("a", "1", 1, 1, 1)]
    assert rejects(source) == [
        (1, "null_user_id"), (2, "null_timestamp"), (3, "null_item_id"), (4, "empty_list"),
        (5, "null_item_id"), (6, "uneven_lists"),
    ]  # fmt: skip


def test_every_bad_row_of_a_shown_item_has_its_reason(tmp_path: Path) -> None:
    path = items_log(
        tmp_path / "i.parquet", request_id=["x", None, ""], item_id=["7", "8", "9"],
        user_id=["a", "b", "c"],
    )  # fmt: skip
    source = reader(path)
    assert [s[0] for s in shown(source)] == ["a"]
    assert rejects(source) == [(1, "null_request_id"), (2, "empty_request_id")]


def test_small_batches_read_the_same(tmp_path: Path) -> None:
    sizes = [3, 1, 2, 5, 1]
    path = write(
        tmp_path / "i.parquet", user_id=[f"u{n}" for n in range(5)], timestamp=range(1, 6),
        item_ids=[list(range(n)) for n in sizes], click=[[0] * (n - 1) + [1] for n in sizes],
    )  # fmt: skip
    whole = reader(path)
    assert shown(whole) == shown(reader(path, batch_rows=2))
    assert len({int(r) for b in whole for r in b.row}) == 5


def test_situation_and_domain_are_read_of_every_item(tmp_path: Path) -> None:
    path = lists_log(tmp_path / "i.parquet", query=["tea", None], shop=["x", "y"], mood=[1.5, 2.0])
    names = ("query", "mood", "other")
    columns = ColumnSpec(domain="shop", event_features=names, situation=names)
    kinds: dict[str, FeatureKind] = {"query": "categorical", "mood": "numeric", "other": "numeric"}
    (batch,) = list(reader(path, columns, kinds=kinds))
    assert set(batch.features) == {"query", "mood"}
    query = batch.features["query"]
    query = query.dictionary_decode() if pa.types.is_dictionary(query.type) else query
    assert query.to_pylist() == ["tea", "tea", "tea", None]
    assert batch.features["mood"].to_pylist() == [1.5, 1.5, 1.5, 2.0]
    assert batch.domain.dictionary_decode().to_pylist() == ["x", "x", "x", "y"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clicked_item": None}, r"no labels: expected columns named as the funnel \['click', 'o"),
        ({"timestamp": None}, r"no column 'timestamp'.*--impression-columns.timestamp"),
        ({"item_ids": pa.array([7, 8])}, "'item_ids' has type int64.*lists of integers or strings"),
        ({"click": pa.array([1, 0])}, "'click' has type int64.*lists of booleans or numbers"),
        ({"mood": pa.array(["x", "y"])}, "'mood' has type string.*numbers, as in the events"),
    ],
)
def test_a_log_that_cannot_be_read_as_declared_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = lists_log(tmp_path / "i.parquet")
    table = pq.read_table(path)
    for name, column in changes.items():
        if name in table.column_names:
            table = table.drop_columns(name)
        if column is not None:
            table = table.append_column(name, column)
    pq.write_table(table, path)
    columns = ColumnSpec(event_features=("mood",), situation=("mood",))
    with pytest.raises(ValueError, match=message):
        reader(path, columns, kinds={"mood": "numeric"})


def test_columns_may_be_named_otherwise(tmp_path: Path) -> None:
    path = write(
        tmp_path / "i.parquet", search=[1, 1], who=["a", "a"], thing=[7, 8], when=[5, 5],
        rank=[1, 2], click=[0, 1],
    )  # fmt: skip
    spec = ImpressionSpec(
        request_id="search", user_id="who", item_id="thing", timestamp="when", position="rank"
    )
    assert shown(reader(path, spec=spec)) == [("a", "7", 5, 0, 1), ("a", "8", 5, 1, 2)]
    lists = write(tmp_path / "l.parquet", user_id=["a"], timestamp=[5], hotels=[[7, 8]], chosen=[7])
    spec = ImpressionSpec(item_ids="hotels", clicked_item="chosen")
    assert shown(reader(lists, spec=spec)) == [("a", "7", 5, 1, 1), ("a", "8", 5, 0, 2)]


def test_a_damaged_file_is_accounted_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    numbers = {n: rng.integers(1, 10**9, 400) for n in ("item_id", "timestamp", "request_id")}
    table = pa.table({"user_id": rng.integers(0, 9, 400), "click": np.ones(400, int)} | numbers)
    path = tmp_path / "d.parquet"
    pq.write_table(table, path, row_group_size=100, use_dictionary=False)
    group = pq.ParquetFile(path).metadata.row_group(2).column(0)
    data = bytearray(path.read_bytes())
    data[group.data_page_offset : group.data_page_offset + 100] = b"\xff" * 100
    path.write_bytes(bytes(data))
    source = reader(path, on_bad_file="skip", batch_rows=100)
    batches = list(source)
    assert sum(b.rows for b in batches) == 200
    assert [r for b in batches for r in b.rejects["row"].to_pylist()] == list(range(200, 400))
