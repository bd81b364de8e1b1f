"""Opening, checking and copying tables of anchors, and which row a request reads."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_world import User, write_dataset

from recsys.data.anchor_fit import fit_anchors
from recsys.data.anchors import (
    AnchorInfo,
    AnchorsConfig,
    AnchorTables,
    copy_newest,
    event_weights,
)
from recsys.schema import Manifest

TABLES = ("trending", "category", "neighbours")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    users = [User(item=[2, 3, 4, 5], train_end=4, timestamp=[0, 10, 20, 30]) for _ in range(3)]
    data = write_dataset(tmp_path / "data", users, num_trained=4)
    fit_anchors(
        data.path,
        data.manifest,
        AnchorsConfig(names=TABLES, num_bins=4, length=2),
        coarse="category",
    )
    return data.path


def test_an_event_counts_one_for_every_task_it_reaches_and_nothing_outside_the_funnel() -> None:
    log = Manifest(behaviors=("order", "cancel", "click"), funnel=("click", "cart", "order"))
    assert event_weights(log).tolist() == [0, 0, 0, 3, 0, 1]


def test_without_a_funnel_everything_counts_but_negative_feedback() -> None:
    names = ("view", "skip", "like")
    log = Manifest(behaviors=names, negative_feedback=True)
    assert event_weights(log).tolist() == [0, 0, 0, 1, 0, 1]
    assert event_weights(Manifest(behaviors=names)).tolist() == [0, 0, 0, 1, 1, 1]


def test_a_moment_on_an_edge_reads_the_row_that_begins_there() -> None:
    info = AnchorInfo(edges=(10, 20, 31))
    moments = np.array([[10, 19, 20, 30, 31, 99]])
    assert info.row_of(np.array([7]), moments).tolist() == [[0, 0, 1, 1, 2, 2]]


def test_without_times_a_user_reads_the_row_of_his_fold_at_any_moment() -> None:
    info = AnchorInfo(folds=3)
    assert info.num_rows == 4
    moments = np.array([[0, 10**9]] * 4)
    assert info.row_of(np.array([0, 1, 2, 5]), moments).tolist() == [[0, 0], [1, 1], [2, 2], [2, 2]]


@pytest.mark.parametrize("info", [AnchorInfo(edges=(100,)), AnchorInfo()])
def test_an_only_row_is_read_at_any_time(info: AnchorInfo) -> None:
    assert info.num_rows == 1
    assert info.row_of(np.array([4, 5]), np.array([[3], [300]])).tolist() == [[0], [0]]


def test_tables_are_memory_mapped_and_not_read(folder: Path) -> None:
    arrays = AnchorTables.open(folder).arrays
    assert set(arrays) == {*TABLES, "neighbours_weight"}
    for array in arrays.values():
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable


def test_tables_have_a_row_a_bin_and_the_newest_one(folder: Path) -> None:
    tables = AnchorTables.open(folder)
    assert tables.info == AnchorInfo(names=TABLES, length=2, edges=(0, 10, 20, 30, 31))
    shapes = {name: array.shape for name, array in tables.arrays.items()}
    assert shapes == {
        "trending": (5, 2),
        "category": (5, 5, 2),
        "neighbours": (5, 6, 2),
        "neighbours_weight": (5, 6, 2),
    }
    assert tables.coarse.tolist() == [0, 0, 2, 3, 4, 2]


def test_a_folder_without_tables_opens_with_none(tmp_path: Path) -> None:
    data = write_dataset(tmp_path, [User(item=[2], train_end=1)], num_trained=1)
    tables = AnchorTables.open(data.path)
    assert tables.arrays == {}
    assert tables.info.names == ()


def test_a_model_folder_gets_the_newest_row_and_its_copy_is_the_same(
    folder: Path, tmp_path: Path
) -> None:
    tables = AnchorTables.open(folder)
    for source, target in ((folder, tmp_path / "model"), (tmp_path / "model", tmp_path / "again")):
        target.mkdir()
        for name in ("manifest.json", "items.arrow"):
            shutil.copyfile(folder / name, target / name)
        copy_newest(source, target)
        newest = AnchorTables.open(target)
        assert newest.info == AnchorInfo(names=TABLES, length=2, edges=(31,))
        for name, array in newest.arrays.items():
            assert np.array_equal(array[0], tables.arrays[name][-1])


def test_a_model_folder_of_logs_without_times_has_no_folds(tmp_path: Path) -> None:
    users = [User(item=[2, 3], train_end=2)] * 4
    data = write_dataset(tmp_path / "data", users, num_trained=2, has_time=False)
    fit_anchors(
        data.path, data.manifest, AnchorsConfig(names=("trending",), num_bins=2), coarse="category"
    )
    model = tmp_path / "model"
    model.mkdir()
    copy_newest(data.path, model)
    assert json.loads((model / "anchors" / "anchors.json").read_text())["folds"] == 0
    assert np.load(model / "anchors" / "trending.npy").shape == (1, 30)


def test_a_folder_without_tables_gives_a_model_none(tmp_path: Path) -> None:
    copy_newest(tmp_path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_table_of_another_shape_is_refused(folder: Path) -> None:
    np.save(folder / "anchors" / "trending.npy", np.zeros((5, 3), np.int32))
    with pytest.raises(ValueError, match=r"trending.npy holds int32 \(5, 3\), not int32 \(5, 2\)"):
        AnchorTables.open(folder)


def test_a_damaged_table_is_refused(folder: Path) -> None:
    (folder / "anchors" / "category.npy").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"category.npy cannot be read as a table of anchors"):
        AnchorTables.open(folder)


def test_a_pickled_table_is_refused(folder: Path) -> None:
    np.save(folder / "anchors" / "trending.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"trending.npy cannot be read as a table of anchors"):
        AnchorTables.open(folder)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("num_bins", 0, "at least 1"),
        ("length", 0, "at least 1"),
        ("graph_events", 0, "at least 1"),
        ("decay", 1.5, "between 0 and 1"),
    ],
)
def test_a_size_out_of_range_is_refused(field: str, value: float, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"{field} \({value}\) must be {rule}"):
        AnchorsConfig(**{field: value})  # type: ignore[arg-type]
