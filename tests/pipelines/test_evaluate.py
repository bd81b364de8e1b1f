"""The job on a small world, through the command line's own entry."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from pipelines.evaluate import main
from recsys.context.config import ContextConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.prepare import PrepareConfig, prepare
from recsys.data.synthetic import SyntheticConfig, synthetic_world, write
from recsys.model.config import (
    DataSizes,
    EncoderConfig,
    RankerConfig,
    ReasonerConfig,
    RecommenderConfig,
)
from recsys.model.onepiece import OnePiece
from recsys.model.save import save_pretrained


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A prepared data set and an untrained model of it."""
    folder = tmp_path_factory.mktemp("evaluate")
    world = synthetic_world(SyntheticConfig(num_users=60, num_items=50, num_events=1_500, seed=1))
    write(world, folder / "logs")
    prepare(PrepareConfig(events=(str(folder / "logs/events.parquet"),), out=folder / "data"))
    dataset = PreparedDataset(folder / "data")
    torch.manual_seed(0)
    config = RecommenderConfig(
        data=DataSizes.of(dataset.manifest),
        encoder=EncoderConfig(width=8, num_layers=1, num_heads=2, max_history=20),
        reasoner=ReasonerConfig(num_steps=1),
        ranker=RankerConfig(decoder="own"),
    )
    model = OnePiece(config, dataset.catalogue).eval()
    context = asdict(ContextConfig(max_history=20))
    save_pretrained(model, folder / "model", folder / "data", context=context)
    return folder / "data", folder / "model"


def test_evaluate_writes_report_and_figures_and_compare_reads_them(
    folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = folders
    flags = ["--model", str(model), "--data", str(data), "--replicates", "50", "--no-filter-seen"]
    for name in ("a", "b"):
        out = tmp_path / name
        assert main([*flags, "--out", str(out)]) == 0
        assert {path.name for path in out.iterdir()} == {
            "report.json",
            "report.md",
            "ranks.parquet",
            *(
                f"{figure}.{kind}"
                for figure in ("recall", "steps", "slices")
                for kind in ("png", "svg")
            ),
        }
    shown = capsys.readouterr().out
    for head in ("prefix", "step0", "step1", "popular_recent", "last_item", "item_knn"):
        assert head in shown
    assert (tmp_path / "a/report.json").read_bytes() == (tmp_path / "b/report.json").read_bytes()
    report = json.loads((tmp_path / "a/report.json").read_text())
    assert report["protocol"]["filter_seen"] is False
    assert report["counts"]["users"] > 0
    assert main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "+0.0000 [+0.0000, +0.0000]" in capsys.readouterr().out


def test_baselines_can_be_tested_alone_and_users_limited(folders, tmp_path: Path) -> None:
    flags = ["--data", str(folders[0]), "--out", str(tmp_path / "out"), "--replicates", "10"]
    assert (
        main([*flags, "--baselines", "popular", "--max-users", "20", "--part", "validation"]) == 0
    )
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [head["scorer"] for head in report["heads"]] == ["popular"]
    assert 0 < report["counts"]["users"] <= 20
    assert report["protocol"]["part"] == "validation"


def test_the_ranking_stage_is_tested_on_what_was_retrieved(
    folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = folders
    flags = ["--stage", "ranking", "--model", str(model), "--data", str(data), "--no-filter-seen"]
    flags += ["--ranking.num-candidates", "30", "--ranking.groupings", "2", "--replicates", "20"]
    assert main([*flags, "--out", str(tmp_path), "--ranking.calibrate"]) == 0
    shown = capsys.readouterr().out
    for word in ("gauc", "target", "model/retrieval", "popular", "boosted"):
        assert word in shown
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["stage"] == "ranking"
    assert report["protocol"]["num_candidates"] == 30
    assert (model / "calibration.json").exists()


def test_missing_folders_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "--data DIR and --out DIR are required" in capsys.readouterr().err


def test_an_unknown_baseline_exits_with_2() -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--baselines", "oracle"])
