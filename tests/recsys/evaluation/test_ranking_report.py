import json

import numpy as np
import pytest

from recsys.config import from_dict, to_dict
from recsys.evaluation.ranking import RankingTable
from recsys.evaluation.ranking_report import (
    RankingProtocol,
    RankingReport,
    build_ranking_report,
    ranking_markdown,
    ranking_rows,
)
from recsys.ranking.calibrate import Calibration, TaskCalibration

USERS, LENGTH = 80, 5


@pytest.fixture(scope="module")
def table() -> RankingTable:
    """80 lists of five with one click each; ``good`` knows it but for noise, ``blind`` nothing."""
    random = np.random.default_rng(0)
    level = np.zeros((USERS, LENGTH), dtype=np.int64)
    level[np.arange(USERS), random.integers(0, LENGTH, USERS)] = 1
    noise = random.normal(size=(2, USERS * LENGTH)).astype(np.float32)
    good = (noise[0] + 2 * level.ravel())[:, None].repeat(2, axis=1).astype(np.float32)
    return RankingTable(
        tasks=("click", "order"),
        request=np.arange(USERS),
        user_index=np.arange(USERS),
        timestamp=np.arange(USERS),
        offsets=np.arange(USERS + 1) * LENGTH,
        item=np.tile(np.arange(1, LENGTH + 1), USERS),
        level=level.ravel(),
        logits={"good": good, "blind": noise[1][:, None].repeat(2, axis=1)},
        regrouped={"good": (good + 1, good)},
    )


@pytest.fixture(scope="module")
def report(table: RankingTable) -> RankingReport:
    backwards = TaskCalibration(slope=-0.1, intercept=-1.0, rows=400, positives=80)
    return build_ranking_report(
        table,
        RankingProtocol(part="validation", final_score="click", groupings=3),
        {
            "good": Calibration.identity(table.tasks),
            "blind": Calibration(tasks={"click": backwards, "order": TaskCalibration()}),
        },
        {
            "good": [table.logits["good"][:, 0].astype(float)] * 3,
            "blind": [table.logits["blind"][:, 0].astype(float)],
        },
        models=["good"],
        pairs=[("good", "blind")],
        replicates=100,
    )


def test_every_scorer_has_every_metric_with_its_interval(report: RankingReport) -> None:
    metrics = ("auc", "gauc", "log_loss", "normalized_entropy", "calibration_error", "ndcg@10")
    assert [(s.scorer, s.is_baseline) for s in report.scorers] == [("good", False), ("blind", True)]
    for scorer in report.scorers:
        assert list(scorer.metrics) == [f"click/{name}" for name in metrics]
        for found in scorer.metrics.values():
            assert found.low <= found.mean <= found.high
    good, blind = report.scorers
    assert good.metrics["click/auc"].low > 0.8
    assert blind.metrics["click/auc"].low < 0.5 < blind.metrics["click/auc"].high


def test_differences_are_paired_and_say_what_could_be_found(report: RankingReport) -> None:
    found = {d.metric: d for d in report.differences}
    assert len(found) == 6
    gauc = found["click/gauc"]
    assert (gauc.a, gauc.b, gauc.users) == ("good", "blind", USERS)
    good, blind = (s.metrics["click/gauc"].mean for s in report.scorers)
    assert gauc.mean == pytest.approx(good - blind)
    assert gauc.low > 0
    assert gauc.p <= gauc.p_holm < 0.001
    assert gauc.standard_error is not None
    assert gauc.smallest_detectable == pytest.approx(2.8016 * gauc.standard_error, rel=1e-4)


def test_the_spread_over_groupings_is_a_standard_deviation(report: RankingReport) -> None:
    good, blind = report.scorers
    assert blind.groupings == {}
    # A logit more for everybody changes no order, but it changes the loss of one of three ways.
    assert good.groupings["click/auc"] == pytest.approx(0)
    assert good.groupings["click/log_loss"] > 0


def test_counts_say_what_lists_there_are(report: RankingReport) -> None:
    assert report.counts == {
        "users": 80,
        "lists": 80,
        "candidates": 400,
        "unknown": 80,
        "click.positives": 80,
        "click.lists": 80,
        "order.positives": 0,
        "order.lists": 0,
    }


def test_warnings_tell_what_must_be_known(report: RankingReport) -> None:
    text = "\n".join(report.warnings)
    assert "calibrated on these very lists" in text
    assert "All candidates are alike for task 'order'" in text
    assert "blind orders 'click' backwards" in text
    assert "Fewer than" not in text


def test_a_report_survives_json(report: RankingReport) -> None:
    text = json.dumps(to_dict(report), allow_nan=False)
    assert from_dict(RankingReport, json.loads(text)) == report
    assert json.loads(text)["stage"] == "ranking"


def test_markdown_and_the_short_table_show_the_figures(report: RankingReport) -> None:
    text = ranking_markdown(report)
    for words in (
        "those that users were shown, in the validation part",
        "80 lists of 80 users with 400 candidates, 80 of them unknown items",
        "click: 80 positives",
        "| good | ",
        "Standard deviation over 3 groupings",
        "| good | blind | click/gauc | **+",
    ):
        assert words in text
    names, rows = ranking_rows(report)
    assert names == ["scorer", "task", "auc", "gauc", "ndcg@10"]
    assert [row[:2] for row in rows] == [["good", "click"], ["blind", "click"]]


def test_retrieved_lists_are_described_by_whose_they_are() -> None:
    text = RankingProtocol(source="mine", num_candidates=50, filter_seen=True).sentences()
    assert "the 50 best items of mine's retrieval, without those of the user's history" in text
