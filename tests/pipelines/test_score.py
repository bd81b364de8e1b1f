"""The scoring command, from a prepared log and an untrained model."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.__main__ import main
from recsys.context.config import ContextConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.prepare import PrepareConfig, prepare
from recsys.model.config import DataSizes, EncoderConfig, RecommenderConfig
from recsys.model.onepiece import OnePiece
from recsys.model.save import save_pretrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``events.parquet`` of 20 users and 8 items, and ``model``."""
    path = tmp_path_factory.mktemp("score")
    random = np.random.default_rng(0)
    events = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(20), 3),
            "item_id": random.integers(100, 108, size=60),
            "timestamp": np.arange(60) * 1000 + 1_700_000_000,
        }
    )
    events.to_parquet(path / "events.parquet", index=False)
    prepare(PrepareConfig(events=(str(path / "events.parquet"),), out=path / "data"))
    dataset = PreparedDataset(path / "data")
    encoder = EncoderConfig(width=4, num_layers=1, num_heads=1, max_history=5)
    config = RecommenderConfig(data=DataSizes.of(dataset.manifest), encoder=encoder)
    model = OnePiece(config, dataset.catalogue)
    save_pretrained(
        model, path / "model", path / "data", context=asdict(ContextConfig(max_history=5))
    )
    return path


def flags(folder: Path, *more: str) -> list[str]:
    events = str(folder / "events.parquet")
    out = str(folder / "scores")
    return ["score", "--model", str(folder / "model"), "--events", events, "--out", out, *more]


def test_the_command_writes_scores_and_prints_one_table(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(folder, "--k", "2", "--no-filter-seen", "--as-of", "2024-01-01")) == 0
    assert "recommendations" in capsys.readouterr().out
    frame = pd.read_parquet(folder / "scores")
    assert len(frame) == 40
    assert frame.dtypes["item_id"] == np.int64
    assert frame["item_id"].between(100, 107).all()


def test_a_failed_job_is_one_line_and_exit_code_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(flags(folder, "--k", "2"))
    capsys.readouterr()
    assert main(flags(folder, "--k", "3", "--as-of", "noon")) == 1
    assert "as_of ('noon') must be seconds since 1970" in capsys.readouterr().err
    missing = ["score", "--model", str(folder / "none"), *flags(folder)[3:]]
    assert main(missing) == 1
    assert "config.json does not exist" in capsys.readouterr().err


def test_a_wrong_flag_exits_with_two(folder: Path) -> None:
    assert main(flags(folder, "--top", "3")) == 2


def test_columns_items_and_pseudonyms_are_flags(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = pd.read_parquet(folder / "events.parquet")
    renamed = events.rename(columns={"user_id": "customer", "item_id": "sku"})
    renamed.to_parquet(folder / "renamed.parquet", index=False)
    pd.DataFrame({"sku": [100, 101, 7]}).to_parquet(folder / "stock.parquet")
    pd.DataFrame({"sku": [101]}).to_parquet(folder / "deny.parquet")
    monkeypatch.setenv("SECRET", "sixteen bytes at least")
    out = folder / "hidden"
    arguments = [
        *("score", "--model", str(folder / "model"), "--out", str(out), "--k", "2"),
        *("--events", str(folder / "renamed.parquet"), "--columns.user-id", "customer"),
        *("--columns.item-id", "sku", "--pseudonymise.key-variable", "SECRET"),
        *("--available", str(folder / "stock.parquet"), "--deny", str(folder / "deny.parquet")),
        *("--no-filter-seen", "--index", "hnsw", "--hnsw.num-links", "4"),
    ]
    assert main(arguments) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "index finds" in told
    assert "policy, available.users" in told
    assert "unknown items in available │ 1" in told
    frame = pd.read_parquet(out)
    assert frame["item_id"].tolist() == [100] * 20
    assert frame["user_id"].str.fullmatch("[0-9a-f]{32}").all()
    assert "SECRET" not in (out / "_manifest.json").read_text()
    assert "sixteen" not in (out / "_manifest.json").read_text()
