from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data.features import (
    StaticTable,
    feature_kind,
    fit_vocabulary,
    moments,
    standardise,
)
from recsys.schema import Feature


def table(tmp_path: Path, **columns: object) -> StaticTable:
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": ["a", "b", "c"], **columns}), path)
    return StaticTable([str(path)], key="item_id", features=list(columns))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pa.string(), "categorical"),
        (pa.large_string(), "categorical"),
        (pa.dictionary(pa.int32(), pa.string()), "categorical"),
        (pa.bool_(), "categorical"),
        (pa.null(), "categorical"),
        (pa.int8(), "numeric"),
        (pa.float64(), "numeric"),
        (pa.decimal128(5, 2), "numeric"),
        (pa.list_(pa.string()), "multi_hot"),
        (pa.large_list(pa.int64()), "multi_hot"),
        (pa.list_(pa.null()), "multi_hot"),
    ],
)
def test_kinds_follow_the_type(kind: pa.DataType, expected: str) -> None:
    assert feature_kind("x", kind) == expected


def test_numbers_can_be_declared_categorical_and_strings_text() -> None:
    assert feature_kind("x", pa.int64(), categorical=["x"]) == "categorical"
    assert feature_kind("x", pa.string(), text=["x"]) == "text"


def test_a_type_that_is_no_feature_is_refused() -> None:
    with pytest.raises(ValueError, match="feature 'x' has type timestamp"):
        feature_kind("x", pa.timestamp("us"))


def test_vocabularies_are_by_count_then_name_and_leave_out_the_unseen() -> None:
    found = fit_vocabulary(["d", "a", "c", "b"], np.array([1, 1, 0, 5]))
    assert found.values == ["b", "a", "d"]
    assert found.lookup.tolist() == [4, 3, 1, 2, 1]


def test_values_rarer_than_the_minimum_are_unknown() -> None:
    found = fit_vocabulary(["d", "a", "c", "b"], np.array([1, 2, 0, 5]), min_count=2)
    assert found.values == ["b", "a"]
    assert found.lookup.tolist() == [1, 3, 1, 2, 1]


def test_moments_by_hand() -> None:
    assert moments(2, 4.0, 10.0) == (2.0, 1.0)
    assert moments(0, 0.0, 0.0) == (0.0, 1.0)
    assert moments(3, 9.0, 27.0) == (3.0, 1.0)  # all equal


def test_missing_numbers_are_zero_after_standardising() -> None:
    feature = Feature(name="x", kind="numeric", mean=2.0, scale=4.0)
    assert standardise(np.array([10.0, np.nan, np.inf, 2.0]), feature).tolist() == [2, 0, 0, 0]


def test_lists_are_gathered_by_row_and_missing_rows_are_empty(tmp_path: Path) -> None:
    items = table(tmp_path, tags=[["x", "y"], None, ["z", "x", "z", None]])
    column, values = items.fit("tags", "multi_hot", np.array([True, True, True]))
    assert values == ["x", "z", "y"]
    assert column.gather(np.array([2, -1, 0, 1])).to_pylist() == [[2, 3], [], [2, 4], []]
    assert pa.types.is_large_list(column.gather(np.array([0]), large=True).type)


def test_lists_of_nothing_make_an_empty_vocabulary(tmp_path: Path) -> None:
    items = table(tmp_path, tags=pa.array([[], [], None], pa.list_(pa.null())))
    column, values = items.fit("tags", "multi_hot", np.ones(3, bool))
    assert (values, column.feature.rows) == ([], 2)
    assert column.gather(np.array([0, 2, -1])).to_pylist() == [[], [], []]


def test_a_fixed_vocabulary_is_applied_to_new_rows(tmp_path: Path) -> None:
    items = table(tmp_path, brand=["new", "b", None])
    feature = Feature(name="brand", kind="categorical", rows=4)
    column = items.apply(feature, ["a", "b"])
    assert column.gather(np.array([0, 1, 2, -1])).to_pylist() == [1, 3, 1, 1]


def test_integer_and_float_ids_of_a_table_are_texts(tmp_path: Path) -> None:
    one, two = tmp_path / "1.parquet", tmp_path / "2.parquet"
    pq.write_table(pa.table({"item_id": [1, 2], "x": [1, 2]}), one)
    pq.write_table(pa.table({"item_id": [3.0, None], "x": [1, 2]}), two)
    found = StaticTable([str(one), str(two)], key="item_id", features=["x"])
    assert found.rows(["1", "2", "3", "4"]).tolist() == [0, 1, 2, -1]
    assert found.null_ids == 1


def test_a_missing_or_doubled_column_of_a_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"id": [1]}), path)
    with pytest.raises(ValueError, match="items.parquet has 0 columns named 'item_id'"):
        StaticTable([str(path)], key="item_id")


def test_files_of_a_table_that_disagree_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": ["a"], "x": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"item_id": ["b"], "x": [["y"]]}), tmp_path / "2.parquet")
    with pytest.raises(ValueError, match="disagree on a column's type"):
        StaticTable([str(tmp_path)], key="item_id", features=["x"])
