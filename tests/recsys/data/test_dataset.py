import json
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pytest
import torch

from recsys.data.dataset import PreparedDataset, read_arrow


def test_a_prepared_data_set_opens_as_tensors(prepared_tiny: Path) -> None:
    dataset = PreparedDataset(prepared_tiny)
    assert [f.kind for f in dataset.manifest.item_features] == [
        "categorical", "multi_hot", "numeric", "text",
    ]  # fmt: skip
    catalogue = dataset.catalogue
    assert catalogue.num_items == dataset.manifest.num_items == 42
    assert catalogue.values["text"].shape == (42, 4)
    assert catalogue.values["text"][:2].abs().sum() == 0
    assert catalogue.values["category"].dtype == torch.int64
    assert catalogue.values["weight"].dtype == torch.float32
    assert len(catalogue.lists["tags"].offsets) == 43
    assert [catalogue.item_ids[catalogue.index["i5"]].as_py()] == ["i5"]
    counts = catalogue.train_count[2:]
    assert torch.equal(counts, counts.sort(descending=True).values)
    assert int((counts > 0).sum()) == catalogue.num_trained


def test_buckets_hold_every_user_and_event_once(prepared_tiny: Path) -> None:
    dataset = PreparedDataset(prepared_tiny)
    manifest = dataset.manifest
    assert sum(b.num_users for b in dataset.buckets) == manifest.num_users == 50
    assert sum(len(b.events["item"].values) for b in dataset.buckets) == 600
    for bucket in dataset.buckets:
        names = {"item", "timestamp", "behavior", "event.device", "event.price"}
        assert set(bucket.events) == names
        assert set(bucket.user_values) == {"country"}
        assert torch.all(bucket.train_end <= bucket.valid_end)
        assert torch.all(bucket.valid_end <= bucket.offsets.diff())
        row = bucket.events["timestamp"].row(0)
        assert torch.all(row.diff() >= 0)
        assert len(bucket.user_ids) == bucket.num_users


def test_a_folder_of_another_version_says_what_to_do(prepared_tiny: Path) -> None:
    path = prepared_tiny / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"version": 99}))
    with pytest.raises(ValueError, match=r"version 99; this library reads version 1"):
        PreparedDataset(prepared_tiny)


def test_a_folder_without_a_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="manifest.json does not exist"):
        PreparedDataset(tmp_path)


def test_a_file_that_is_not_arrow_is_named(tmp_path: Path) -> None:
    path = tmp_path / "items.arrow"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"items.arrow cannot be read as an Arrow file"):
        read_arrow(path)


def test_every_file_is_one_record_batch(prepared_tiny: Path) -> None:
    for path in [*prepared_tiny.glob("histories/*"), prepared_tiny / "items.arrow"]:
        with pa.ipc.open_file(path) as source:
            assert source.num_record_batches == 1
