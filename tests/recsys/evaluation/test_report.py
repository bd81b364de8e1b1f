import dataclasses
import json
import math

import numpy as np
import pytest

from recsys.config import from_dict, to_dict
from recsys.evaluation.figures import write_figures
from recsys.evaluation.markdown import markdown, summary_rows
from recsys.evaluation.protocol import EvaluationProtocol
from recsys.evaluation.report import (
    DifferenceReport,
    HeadReport,
    Report,
    SliceReport,
    build_report,
    contrasts,
    counts,
    main_metrics,
)
from recsys.evaluation.slices import SliceColumn
from recsys.evaluation.table import ListStatistics, UserTable

USERS = 60
HEADS = [("m", "prefix"), ("m", "step0"), ("m", "step1"), ("popular", "score")]


@pytest.fixture
def table() -> UserTable:
    random = np.random.default_rng(0)
    ranks = {key: random.integers(1, 30, USERS).astype(float) for key in HEADS}
    ranks["m", "step1"] = np.maximum(ranks["m", "step0"] - 8, 1)  # better for everybody
    ranks["popular", "score"][:6] = math.inf
    some = np.ones(USERS)
    lists = ListStatistics(some, some * 3, np.full(USERS, np.nan), np.array([0, 0, 5, 1, 0]))
    return UserTable(
        user_index=np.arange(USERS),
        target=np.full(USERS, 3),
        history_length=np.arange(USERS),
        history_popularity=some * 0.5,
        target_seen=np.arange(USERS) < 6,
        target_known=np.arange(USERS) > 2,
        ranks=ranks,
        lists={key: lists for key in HEADS},
        answers=(("m", "step1"), ("popular", "score")),
        k=(1, 5, 10),
        num_candidates=3,
    )


@pytest.fixture
def report(table) -> Report:
    slices = {"half": SliceColumn(("first", "second"), (np.arange(USERS) >= 55).astype(int))}
    protocol = EvaluationProtocol(num_users=USERS, num_candidates=3, split="leave_one_out")
    return build_report(table, protocol, slices, baselines=["popular"], replicates=100)


def test_main_metrics_are_at_ten_or_near_it() -> None:
    assert main_metrics((1, 10, 100)) == ("recall@10", "ndcg@10")
    assert main_metrics((1, 5)) == ("recall@5", "ndcg@5")


def test_every_head_has_every_metric_with_its_interval(table, report) -> None:
    assert [(h.scorer, h.head) for h in report.heads] == HEADS
    assert [h.is_answer for h in report.heads] == [False, False, True, True]
    assert [h.is_baseline for h in report.heads] == [False, False, False, True]
    for head in report.heads:
        found = head.metrics["recall@10"]
        expected = (table.ranks[head.scorer, head.head] <= 10).mean()
        assert found.mean == pytest.approx(expected)
        assert found.low <= found.mean <= found.high
        assert head.metrics["hit_rate@10"] == found


def test_numbers_that_do_not_exist_are_null(report) -> None:
    lists = report.heads[0].lists
    assert lists["diversity@10"] is None
    assert lists["novelty@10"] == 3
    assert lists["popularity_bias@10"] == 0.5
    assert lists["coverage@10"] == pytest.approx(2 / 3)


def test_steps_are_compared_with_the_prefix_and_step_0_and_answers_with_baselines(table) -> None:
    assert contrasts(table, ["popular"]) == [
        (("m", "step0"), ("m", "prefix")),
        (("m", "step1"), ("m", "prefix")),
        (("m", "step1"), ("m", "step0")),
        (("m", "step1"), ("popular", "score")),
    ]


def test_a_second_model_is_compared_with_the_first(table) -> None:
    both = dataclasses.replace(
        table,
        ranks={("a", "x"): table.ranks["m", "step0"], ("b", "x"): table.ranks["m", "step1"]},
        answers=(("a", "x"), ("b", "x")),
    )
    assert contrasts(both, []) == [(("b", "x"), ("a", "x"))]


def test_a_gain_of_every_user_is_found(report) -> None:
    found = next(d for d in report.differences if (d.a, d.b, d.slice) == ("m/step1", "m/step0", ""))
    assert found.metric == "recall@10"
    assert found.low > 0
    assert found.p <= found.p_holm < 0.05
    assert found.smallest_detectable == pytest.approx(2.8016 * found.standard_error, rel=1e-4)
    assert found.users == USERS


def test_slices_carry_their_users_and_small_ones_are_flagged(report) -> None:
    cells = {(s.value, s.scorer, s.head): s for s in report.slices}
    assert len(cells) == 2 * len(HEADS)
    assert (cells["first", "m", "step1"].users, cells["first", "m", "step1"].is_small) == (
        55,
        False,
    )
    assert (cells["second", "m", "step1"].users, cells["second", "m", "step1"].is_small) == (
        5,
        True,
    )
    inside = [d for d in report.differences if d.slice]
    assert {d.slice for d in inside} == {"half=first", "half=second"}
    assert {d.b for d in inside} == {"m/prefix", "m/step0"}


def test_misses_are_counted_by_reason(table) -> None:
    assert counts(table) == {
        "requests": 60,
        "users": 60,
        "empty_histories": 1,
        "targets_not_candidates": 3,
        "targets_seen": 6,
        "targets_filtered": 6,
    }


def test_warnings_tell_what_must_be_known(report) -> None:
    text = "\n".join(report.warnings)
    assert "the future leaks" in text
    assert "10.0% of the targets are in their user's own history" in text
    assert "5.0% of the targets are no candidates" in text
    assert "above 0.950" in text
    assert "Fewer than 50 users in: half=second" in text


def test_a_report_survives_json(report) -> None:
    text = json.dumps(to_dict(report), allow_nan=False)
    assert from_dict(Report, json.loads(text)) == report


def test_the_schema_of_version_1_is_stable() -> None:
    """Fields may be added; a change here that removes or renames one needs a new version."""
    assert Report().version == 1
    needed = {
        Report: "version library protocol counts k list_k replicates seed level heads differences "
        "slices warnings",
        HeadReport: "scorer head is_answer is_baseline metrics lists",
        DifferenceReport: "a b metric slice mean low high relative standard_error "
        "smallest_detectable p p_holm users",
        SliceReport: "column value users is_small scorer head metrics",
        EvaluationProtocol: "part split target target_behavior candidates num_candidates "
        "filter_seen num_users",
    }
    for kind, names in needed.items():
        assert set(names.split()) <= {f.name for f in dataclasses.fields(kind)}


def test_markdown_shows_protocol_warnings_results_and_differences(report) -> None:
    text = markdown(report, figures=["recall.png"])
    for words in (
        "every item with a training event",
        "the future leaks",
        "| m | **step1** |",
        "| m/step1 | m/step0 | recall@10 | **+",
        "| half | second | 5 (few) |",
        "![recall](recall.png)",
    ):
        assert words in text
    names, rows = summary_rows(report)
    assert names == ["scorer", "head", "recall@10", "ndcg@10"]
    assert [row[:2] for row in rows] == [list(key) for key in HEADS]


def test_figures_are_written_as_png_and_svg(report, tmp_path) -> None:
    names = write_figures(report, tmp_path)
    assert names == ["recall.png", "steps.png", "slices.png"]
    for name in names:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / name).with_suffix(".svg").read_text()


def test_the_same_report_gives_the_same_svg(report, tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("a", "b"):
        write_figures(report, tmp_path / name)
    assert (tmp_path / "a/steps.svg").read_bytes() == (tmp_path / "b/steps.svg").read_bytes()


def test_figures_without_data_are_left_out(report, tmp_path) -> None:
    bare = dataclasses.replace(report, k=(10,), slices=(), heads=report.heads[3:])
    assert write_figures(bare, tmp_path) == []
