"""The ablation: its rows are real changes, cells are cached, rows are compared user by user."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipelines.__main__ as command_line
from pipelines.benchmarks import ablation_cells, ablation_data, ablation_run
from pipelines.benchmarks.ablation import AblationBenchmark, _distinct
from pipelines.benchmarks.ablation_cells import TABLES, Cell, Table, changed, rows_of, run_of
from pipelines.benchmarks.ablation_data import DATA, narrowed, open_data, prepared, whole
from pipelines.benchmarks.ablation_report import report
from pipelines.benchmarks.ablation_run import Outcome, OutOfTimeError, at_most, run_cell
from pipelines.configs import RunConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.synthetic import SyntheticConfig

TINY = {
    "encoder.width": 8, "encoder.num_layers": 1, "encoder.max_history": 8,
    "context.max_history": 8, "context.requests_per_row": 2, "train.batch_rows": 32,
    "train.validate_every": 1, "train.epochs": 1,
}  # fmt: skip
ROWS = [(number, cell) for number, table in TABLES.items() for cell in table.cells]


@pytest.mark.parametrize("name", DATA)
def test_every_row_is_a_run_of_every_log(name: str) -> None:
    data = DATA[name]
    for number, cell in ROWS:
        run = run_of(cell, TABLES[number].stage, data.base(), data.anchors)
        assert isinstance(run, RunConfig)
        assert run.answer == "last"
        lengths = run.context.anchor_lengths
        assert abs(sum(lengths) - cell.anchors) <= len(data.anchors) / 2
        if TABLES[number].stage == "ranking":
            assert run.context.group_size * run.context.groups == 24


def test_rows_of_a_table_differ_but_for_the_head_that_is_read() -> None:
    data = DATA["world"]
    for table in TABLES.values():
        runs = [
            (run_of(cell, table.stage, data.base(), data.anchors), cell.view, cell.head)
            for cell in table.cells
        ]
        assert all(runs.count(one) == 1 for one in runs)
        names = [cell.name for cell in table.cells]
        assert len(set(names)) == len(names)


def test_rows_are_held_against_rows_of_their_table_and_the_papers_have_all_figures() -> None:
    for number, table in TABLES.items():
        for only_main in (False, True):
            kept = rows_of(number, only_main=only_main)
            names = {cell.name for cell in kept.cells}
            assert {other for cell in kept.cells for other in cell.against} <= names
            assert any(cell.against for cell in kept.cells)
        for cell in table.cells:
            assert cell.paper is None or len(cell.paper[1]) == len(table.paper_metrics)
    main = ablation_cells.MAIN_ROWS
    assert {n: len(rows_of(n, only_main=True).cells) for n in main} == {
        n: len(rows) for n, rows in main.items()
    }


def test_a_log_without_anchors_or_features_has_fewer_rows() -> None:
    bare = replace(DATA["world"], anchors=(), views=("all", "ranking"))
    names = [cell.name for cell in _distinct(TABLES["3"], bare)]
    assert names == ["+ user and situation"]
    assert len(_distinct(TABLES["4"], bare)) == len(TABLES["4"].cells)


def test_a_change_names_a_field_that_is_there() -> None:
    with pytest.raises(TypeError, match="num_stepz"):
        changed(RunConfig(), {"reasoner.num_stepz": 3})


# --- comparing ------------------------------------------------------------------------------------


def outcome(users: list[int], **values: list[float]) -> Outcome:
    facts = {"train_seconds": 1.0, "epochs": 1, "cut_short": False}
    found = {k.replace("__", "/"): np.array(v, dtype=float) for k, v in values.items()}
    return Outcome(Path(), np.array(users), found, facts)


def test_users_are_averaged_over_seeds_and_compared_one_by_one() -> None:
    table = Table(
        title="t", stage="retrieval",
        cells=(
            Cell(name="a", paper=("V1", (0.4, 0.6))), Cell(name="b", against=("a", "gone")),
            Cell(name="first", head="prefix", against=("a",)), Cell(name="absent"),
        ),
    )  # fmt: skip
    a = [
        outcome([3, 5], prefix__recall=[0.0, 0.0], step0__recall=[0.5, 0.0]),
        outcome([3, 5], prefix__recall=[0.0, 0.0], step0__recall=[0.5, 1.0]),
    ]
    b = [
        outcome([3, 5], prefix__recall=[0.0, 0.0], step0__recall=[1.0, 0.5]),
        outcome([3, 5], prefix__recall=[0.0, 0.0], step0__recall=[1.0, 1.0]),
    ]
    found = report(table, {"a": a, "b": b, "first": a})
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["a", "b", "first"]
    assert rows["a"]["metrics"]["recall"]["mean"] == 0.5
    assert rows["a"]["metrics"]["recall"]["seeds"] == [0.25, 0.75]
    assert rows["a"]["paper"] == {"row": "V1", "R@100": 0.4, "R@500": 0.6}
    assert rows["first"]["metrics"]["recall"]["mean"] == 0.0
    difference = found["differences"][0]
    assert (difference["row"], difference["against"]) == ("b", "a")
    recall = difference["metrics"]["recall"]
    # Users 3 and 5 gain 0.5 and 0.25: mean 0.375, standard deviation 0.25 / √2, over √2 users.
    assert recall["mean"] == pytest.approx(0.375)
    assert recall["standard_error"] == pytest.approx(0.125)
    assert recall["relative"] == pytest.approx(0.75)
    assert recall["seeds"] == [0.5, 0.25]
    assert [(d["row"], d["against"]) for d in found["differences"]] == [("b", "a"), ("first", "a")]
    with pytest.raises(ValueError, match="different users"):
        report(table, {"a": a, "b": [outcome([3, 6], step0__recall=[1.0, 1.0])]})


# --- running --------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """The world of the command, small; two rows of table 4 and of table 5."""
    world = SyntheticConfig(
        num_users=30, num_items=40, num_events=900, num_topics=2, num_days=20,
        impression_share=0.4, list_length=6,
    )  # fmt: skip
    real = DATA["world"]
    data = replace(
        real, world=world, only_main=True, anchors=("query", "own"), anchor_bins=3,
        base=lambda: changed(real.base(), TINY),
    )  # fmt: skip
    monkeypatch.setitem(ablation_data.DATA, "world", data)
    rows = {
        "3": ("+ user and situation", "+ 30 anchors"),
        "4": ("prefix head", "K = 0"),
        "5": ("the retrieval's order", "K = 0, candidates apart", "K = 3, progressive"),
        "6": (),
    }
    monkeypatch.setattr(ablation_cells, "MAIN_ROWS", rows)
    return "world"


def benchmark(out: Path, *flags: str) -> int:
    return command_line.main(["benchmark", "ablation", "--out", str(out), *flags])


def test_the_command_trains_tests_and_compares_and_goes_on_where_it_stopped(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--tables", "3", "4", "--seeds", "0", "1", "--replicates", "50")
    assert benchmark(tmp_path, *flags) == 0
    shown = capsys.readouterr().out
    for words in ("Table 3", "Table 4", "+ 30 anchors", "paper (other data)", "V5: 0.475, 0.689",
                  "detectable"):  # fmt: skip
        assert words in shown
    found = json.loads((tmp_path / "ablation-world.json").read_text())
    tables = found["results"]["tables"]
    rows = {row["name"]: row for row in tables["4"]["rows"]}
    assert set(rows) == {"prefix head", "K = 0"}
    assert len(rows["K = 0"]["metrics"]["recall@100"]["seeds"]) == 2
    assert rows["K = 0"]["metrics"]["recall@100"]["mean"] > 0
    cells = list((tmp_path / "cells").iterdir())
    assert len(cells) == 6  # (two of table 3, one of table 4 for both its rows) x two seeds
    assert not list((tmp_path / "cells").rglob("checkpoints"))

    def never(*args: Any) -> None:
        raise AssertionError("a finished cell must not be trained again")

    monkeypatch.setattr(ablation_run, "run_training", never)
    assert benchmark(tmp_path, *flags) == 0
    again = json.loads((tmp_path / "ablation-world.json").read_text())
    assert again["results"] == found["results"]


@pytest.mark.parametrize("candidates", ["impressions", "built"])
def test_ranking_is_compared_on_the_same_lists_shown_or_retrieved(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, candidates: Any
) -> None:
    world = DATA["world"]
    if candidates == "built":  # so that there are lists to retrieve, nothing is shown
        monkeypatch.setattr(ablation_data, "whole", lambda *a: replace(whole(*a), impressions=()))
    monkeypatch.setitem(ablation_data.DATA, "world", replace(world, candidates=candidates))
    assert benchmark(tmp_path, "--tables", "5", "--seeds", "0", "--replicates", "50") == 0
    found = json.loads((tmp_path / "ablation-world.json").read_text())["results"]["tables"]["5"]
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["the retrieval's order", "K = 0, candidates apart", "K = 3, progressive"]
    for row in rows.values():
        assert {"click/auc", "click/gauc", "order/auc"} <= set(row["metrics"])
        assert 0 <= row["metrics"]["click/auc"]["mean"] <= 1
    assert rows["K = 3, progressive"]["paper"]["C-AUC"] == 0.911
    assert [d["against"] for d in found["differences"]] == ["the retrieval's order"]
    cells = 2 + (candidates == "built")  # the retriever of the lists is one more
    assert len(list((tmp_path / "cells").iterdir())) == cells


def test_a_cell_that_takes_too_long_is_cut_and_its_best_weights_are_tested(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DATA["world"]
    run = run_of(Cell(name="x", anchors=0), "retrieval", data.base(), ())
    folder = prepared(data, "all", tmp_path)
    real = ablation_run.run_training

    def runs_out(run: RunConfig, paths: Any) -> None:
        real(run, paths)
        raise OutOfTimeError

    monkeypatch.setattr(ablation_run, "run_training", runs_out)
    cut = run_cell(run, folder, tmp_path / "cells", minutes=1)
    assert cut.facts["cut_short"]
    monkeypatch.setattr(ablation_run, "run_training", real)
    assert run_cell(run, folder, tmp_path / "cells", minutes=0.5).facts == cut.facts
    entire = run_cell(run, folder, tmp_path / "cells", minutes=2)
    assert not entire.facts["cut_short"]
    assert all(np.array_equal(entire.values[name], cut.values[name]) for name in cut.values)
    assert cut.heads == ("prefix", "step0", "step1", "step2")
    monkeypatch.setattr(ablation_run, "run_training", lambda run, paths: time.sleep(60))
    with pytest.raises(OutOfTimeError, match=r"--minutes \(0.001\) were over before the first"):
        run_cell(changed(run, {"train.seed": 9}), folder, tmp_path / "cells", minutes=0.001)


def test_a_row_without_weights_in_time_is_left_out_and_named(tiny: str, tmp_path: Path) -> None:
    assert benchmark(tmp_path, "--tables", "4", "--seeds", "0", "--minutes", "0.00001") == 0
    found = json.loads((tmp_path / "ablation-world.json").read_text())
    assert found["results"]["tables"]["4"]["rows"] == []
    assert "'K = 0' is left out: --minutes (1e-05)" in found["notes"][1]


def test_time_is_up_only_inside_the_block() -> None:
    with pytest.raises(OutOfTimeError), at_most(0.01):
        time.sleep(5)
    with at_most(0.05):
        pass
    time.sleep(0.06)


def test_views_declare_less_and_less_of_a_log(tiny: str, tmp_path: Path) -> None:
    data = DATA["world"]
    everything = whole(data, {n: tmp_path / n for n in ("events", "items", "users", "impressions")})
    ids = narrowed(everything, "ids")
    assert (ids.items, ids.columns.item_features, ids.coarse) == ((), (), "none")
    items = narrowed(everything, "items")
    assert items.columns.item_features
    assert not items.columns.situation
    ranking = narrowed(everything, "ranking")
    assert ranking.impressions
    assert narrowed(everything, "all").target_behavior == "click"
    assert not narrowed(everything, "all").impressions


def test_a_prepared_data_set_is_used_as_it_is(toy: PreparedDataset, tmp_path: Path) -> None:
    name, data = open_data(str(toy.path))
    assert name == toy.path.name
    assert data.anchors == ()
    assert prepared(data, "all", tmp_path) == toy.path
    with pytest.raises(ValueError, match=r"--data \('nothing'\) must be one of"):
        open_data("nothing")


def test_wrong_numbers_are_named(tmp_path: Path) -> None:
    for change, message in (
        ({"seeds": (1, 1)}, r"seeds \(1, 1\)"),
        ({"minutes": 0.0}, r"minutes \(0.0\)"),
        ({"epochs": 0}, r"epochs \(0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            AblationBenchmark(out=tmp_path, **change)  # type: ignore[arg-type]
