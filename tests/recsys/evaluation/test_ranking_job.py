"""The whole evaluation of an untrained model with a ranking stage, on a small log."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.evaluation.compare import REPORT_FILE, read_report
from recsys.evaluation.models import EvaluationConfig
from recsys.evaluation.ranking_job import RankingConfig, report_on_ranking
from recsys.evaluation.ranking_report import RankingReport
from recsys.metrics.calibration import auc, grouped_auc

CONFIG = EvaluationConfig(filter_seen=False, batch_size=16)
SMALL = RankingConfig(num_candidates=9, groupings=2)


def ask(
    folder: Path, out: Path, *, models: int = 1, part: str = "test", **changes: Any
) -> RankingReport:
    return report_on_ranking(
        [folder] * models,
        folder.parent / "data",
        out,
        replace(CONFIG, part=part),  # type: ignore[arg-type]
        replace(SMALL, **changes),
        replicates=20,
    )


@pytest.fixture(scope="module")
def asked(
    ranking_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RankingReport, Path]:
    out = tmp_path_factory.mktemp("asked") / "report"
    return ask(ranking_folder, out), out


def test_a_model_meets_its_retrieval_popularity_and_trees(
    asked: tuple[RankingReport, Path],
) -> None:
    report, out = asked
    assert [s.scorer for s in report.scorers] == ["model", "model/retrieval", "popular", "boosted"]
    assert [s.is_baseline for s in report.scorers] == [False, True, True, True]
    assert report.tasks == ("view", "cart")
    assert report.protocol.source == "model"
    assert report.protocol.final_score == "cart"
    pairs = {(d.a, d.b) for d in report.differences}
    assert pairs == {("model", b) for b in ("model/retrieval", "popular", "boosted")}
    model, retrieval, _, boosted = report.scorers
    assert set(model.groupings) == set(model.metrics)
    assert retrieval.groupings == {}
    assert model.calibration.tasks["view"].rows > 0
    assert boosted.calibration.tasks["view"].rows == 0  # fitted on these very lists
    assert {path.name for path in out.iterdir()} == {"report.json", "report.md", "lists.parquet"}
    assert json.loads((out / REPORT_FILE).read_text())["stage"] == "ranking"


def test_the_lists_give_every_figure_again(asked: tuple[RankingReport, Path]) -> None:
    report, out = asked
    frame = pq.read_table(out / "lists.parquet").to_pandas()
    assert len(frame) == 4 * report.counts["lists"]
    for scorer in report.scorers:
        rows = frame[frame["scorer"] == scorer.scorer]
        level = np.concatenate(rows["level"].tolist())
        owner = np.repeat(np.arange(len(rows)), rows["level"].map(len))
        for s, task in enumerate(report.tasks):
            logit = np.concatenate(rows[f"logit.{task}"].tolist())
            labels = (level > s).astype(int)
            assert scorer.metrics[f"{task}/auc"].mean == pytest.approx(auc(labels, logit))
            gauc, _ = grouped_auc(labels, logit, owner)
            assert scorer.metrics[f"{task}/gauc"].mean == pytest.approx(gauc)
        assert np.array_equal(
            np.concatenate(rows["score"].tolist()),
            np.concatenate(rows["logit.cart"].tolist()).astype(np.float64),
        )
    first = frame.iloc[0]
    assert first["user_id"].startswith("u")
    assert all(name.startswith("i") for name in first["item_id"])


def test_calibrations_are_fitted_on_validation_and_saved_where_asked(
    ranking_folder: Path, tmp_path: Path, asked: tuple[RankingReport, Path]
) -> None:
    assert not (ranking_folder / "calibration.json").exists()
    shutil.copytree(ranking_folder, tmp_path / "model")
    shutil.copytree(ranking_folder.parent / "data", tmp_path / "data")
    found = ask(
        tmp_path / "model", tmp_path / "out", part="validation", calibrate=True, groupings=1
    )
    saved = json.loads((tmp_path / "model/calibration.json").read_text())["tasks"]
    expected = asked[0].scorers[0].calibration.tasks["cart"]
    assert saved["cart"]["slope"] == pytest.approx(expected.slope)
    assert found.scorers[0].groupings == {}
    text = "\n".join(found.warnings)
    assert "boosted baseline was left out" in text
    assert "calibrated on these very lists" in text


def test_a_formula_orders_the_lists_and_changes_no_auc(
    ranking_folder: Path, tmp_path: Path, asked: tuple[RankingReport, Path]
) -> None:
    found = ask(
        ranking_folder,
        tmp_path / "out",
        final_score="retrieval_score",
        baselines=("retrieval",),
        groupings=1,
    )
    model, retrieval = found.scorers
    assert model.metrics["cart/ndcg@10"].mean == retrieval.metrics["cart/ndcg@10"].mean
    expected = asked[0].scorers[0].metrics["cart/auc"].mean
    assert model.metrics["cart/auc"].mean == pytest.approx(expected)


def test_several_models_are_compared_with_the_first_on_its_lists(
    ranking_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(ranking_folder, other)
    config = json.loads((other / "config.json").read_text())
    config["context"]["group_size"] = 3
    config["context"]["max_history"] = 4
    (other / "config.json").write_text(json.dumps(config))
    found = report_on_ranking(
        [ranking_folder, other],
        ranking_folder.parent / "data",
        tmp_path / "out",
        CONFIG,
        replace(SMALL, baselines=("popular",), fit_lists=10),
        replicates=20,
    )
    assert [s.scorer for s in found.scorers] == ["model", "other", "popular"]
    pairs = list(dict.fromkeys((d.a, d.b) for d in found.differences))
    assert pairs == [("other", "model"), ("model", "popular"), ("other", "popular")]
    assert found.scorers[0].calibration.tasks["view"].rows <= 10 * SMALL.num_candidates


def test_reports_of_the_ranking_stage_are_compared_in_one_run(
    asked: tuple[RankingReport, Path],
) -> None:
    with pytest.raises(ValueError, match="report of the ranking stage: to compare models there"):
        read_report(asked[1])


def test_what_cannot_be_tested_is_told(
    ranking_folder: Path, prepared: Path, model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="model has no ranking stage: train it with --ranker"):
        report_on_ranking([model_folder], prepared, tmp_path, CONFIG, SMALL)
    with pytest.raises(ValueError, match="no impressions, so candidates are what a model retr"):
        report_on_ranking([], prepared, tmp_path, CONFIG, SMALL)
    with pytest.raises(ValueError, match=r"boosted_part \('training'\) needs impressions"):
        ask(ranking_folder, tmp_path / "out", boosted_part="training")
    with pytest.raises(ValueError, match=r"names the columns \['p_like'\]"):
        ask(ranking_folder, tmp_path / "out", final_score="p_like", baselines=())
    with pytest.raises(ValueError, match=r"groupings \(0\) must be at least 1"):
        RankingConfig(groupings=0)
