from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from tiny_logs import START, TinyLogs, tiny_config

from recsys.data.dataset import Histories, PreparedDataset
from recsys.data.encode import encode_histories
from recsys.data.prepare import prepare
from recsys.privacy.pseudonymise import Pseudonymiser
from recsys.schema import ColumnSpec


def histories(folder: Path) -> dict[str, dict[str, Any]]:
    rows = []
    for path in sorted(folder.glob("histories/*")):
        with pa.ipc.open_file(path) as source:
            rows += source.read_all().to_pylist()
    return {r["user_id"]: r for r in rows}


def events(path: Path, rows: list[dict[str, Any]]) -> Path:
    plain = {"timestamp": START, "behavior": "click", "device": "phone", "price": 1.0}
    pq.write_table(pa.Table.from_pylist([plain | r for r in rows]), path)
    return path


def test_the_log_of_a_data_set_is_encoded_to_its_own_histories(
    tiny_logs: TinyLogs, prepared_tiny: Path, tmp_path: Path
) -> None:
    manifest = encode_histories(
        [str(tiny_logs.events)], model=prepared_tiny, out=tmp_path / "new", num_buckets=3,
        users=[str(tiny_logs.users)],
    )  # fmt: skip
    before, after = histories(prepared_tiny), histories(tmp_path / "new")
    assert set(before) == set(after)
    for user, row in after.items():
        assert row["train_end"] == row["valid_end"] == len(row["item"])
        ends = {"train_end", "valid_end"}
        assert {k: v for k, v in row.items() if k not in ends} == {
            k: v for k, v in before[user].items() if k not in ends
        }
    assert (manifest.num_users, manifest.num_buckets, manifest.rows_out) == (50, 3, 600)
    opened = Histories(tmp_path / "new" / "histories" / "00000.arrow")
    assert opened.num_users == len(opened.train_end) > 0


def test_what_training_has_not_seen_is_unknown_and_counted(
    prepared_tiny: Path, tmp_path: Path
) -> None:
    log = events(
        tmp_path / "new.parquet",
        [
            {"user_id": "new", "item_id": "i0"},
            {"user_id": "new", "item_id": "brand-new", "timestamp": START + 1},
            {"user_id": "new", "item_id": "i0", "timestamp": START + 2, "behavior": "share"},
            {"user_id": "u1", "item_id": "i1", "device": "fridge", "price": None},
        ],
    )
    manifest = encode_histories([str(log)], model=prepared_tiny, out=tmp_path / "new")
    found = histories(tmp_path / "new")
    known = PreparedDataset(prepared_tiny).catalogue.index
    assert found["new"]["item"] == [known["i0"], 1, known["i0"]]
    assert found["new"]["behavior"] == [3, 3, 1]
    assert found["u1"]["event.device"] == [1]
    assert found["u1"]["event.price"] == [0.0]
    assert found["u1"]["user.country"] == 1  # no users table given
    assert manifest.counts == {
        "events": 4, "events.unknown_item": 1, "events.unknown_per_million": 250_000,
        "items.known": 2, "items.unknown": 1, "users": 2, "events.unknown_behavior": 1,
        "events.unknown_device": 1,
    }  # fmt: skip


def test_new_columns_may_be_named_otherwise(prepared_tiny: Path, tmp_path: Path) -> None:
    log = events(tmp_path / "new.parquet", [{"user_id": "u1", "item_id": "i1"}])
    table = pq.read_table(log).rename_columns({"user_id": "customer"})
    pq.write_table(table, log)
    columns = ColumnSpec(user_id="customer", event_features=("device", "price"),
                         user_features=("country",))  # fmt: skip
    encode_histories([str(log)], model=prepared_tiny, out=tmp_path / "new", columns=columns)
    assert list(histories(tmp_path / "new")) == ["u1"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (ColumnSpec(user_features=("country",)), r"event_features \(\) must be those of the model"),
        (ColumnSpec(event_features=("device", "price"), user_features=("country",),
                    situation=("device",)), r"situation \('device',\) must be those of the model"),
        (ColumnSpec(event_features=("device", "price"), user_features=("country",), domain="x"),
         "columns.domain is 'x' but was None"),
    ],
)  # fmt: skip
def test_features_other_than_the_models_are_refused(
    tiny_logs: TinyLogs, prepared_tiny: Path, tmp_path: Path, columns: ColumnSpec, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode_histories([str(tiny_logs.events)], model=prepared_tiny, out=tmp_path / "new",
                         columns=columns)  # fmt: skip


def test_bad_rows_are_kept_apart_here_too(prepared_tiny: Path, tmp_path: Path) -> None:
    rows = [{"user_id": "u1", "item_id": "i1"}] * 3 + [{"user_id": None, "item_id": "i1"}]
    log = events(tmp_path / "new.parquet", rows)
    with pytest.raises(ValueError, match=r"1 of 4 rows cannot be used \(null_user_id 1\)"):
        encode_histories([str(log)], model=prepared_tiny, out=tmp_path / "new")
    manifest = encode_histories([str(log)], model=prepared_tiny, out=tmp_path / "new",
                                max_reject_fraction=0.3)  # fmt: skip
    assert manifest.rejects == {"null_user_id": 1}
    assert pq.read_table(tmp_path / "new" / "rejects" / "events.parquet").num_rows == 1


def test_pseudonyms_agree_with_those_of_training(tiny_logs: TinyLogs, tmp_path: Path) -> None:
    hide = Pseudonymiser(b"0123456789abcdef")
    prepare(tiny_config(tiny_logs, tmp_path / "model"), pseudonymise=hide)
    encode_histories([str(tiny_logs.events)], model=tmp_path / "model", out=tmp_path / "new",
                     users=[str(tiny_logs.users)], pseudonymise=hide)  # fmt: skip
    before, after = histories(tmp_path / "model"), histories(tmp_path / "new")
    assert {u: r["user.country"] for u, r in before.items()} == {
        u: r["user.country"] for u, r in after.items()
    }


def test_a_folder_that_is_no_model_is_named(tiny_logs: TinyLogs, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere/manifest.json does not exist"):
        encode_histories([str(tiny_logs.events)], model=tmp_path / "nowhere", out=tmp_path / "new")
