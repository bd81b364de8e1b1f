"""A run killed anywhere and resumed ends as the uninterrupted one, bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import toy_dataset
from toy_run import CONFIG, Killed, Run, check_same

from recsys.data.dataset import PreparedDataset
from recsys.model.onepiece import OnePiece
from recsys.training.loop import TrainConfig
from recsys.training.objective import ObjectiveConfig
from recsys.training.optim import OptimizerConfig


@pytest.mark.parametrize("kill_at", [1, 6, 7, 8, 17, 20])
def test_a_run_killed_at_a_step_and_resumed_equals_the_uninterrupted_one(
    whole: Any, toy: PreparedDataset, tmp_path: Path, kill_at: int
) -> None:
    run = Run(toy, tmp_path)
    with pytest.raises(Killed):
        run.start(kill_at=kill_at)
    check_same(run, *run.start(resume=True), whole)


@pytest.mark.parametrize("kill_in", ["validate 1", "validate 3", "save_best 1"])
def test_a_run_killed_between_epochs_and_resumed_equals_the_uninterrupted_one(
    whole: Any, toy: PreparedDataset, tmp_path: Path, kill_in: str
) -> None:
    run = Run(toy, tmp_path)
    with pytest.raises(Killed):
        run.start(kill_in=kill_in)
    check_same(run, *run.start(resume=True), whole)


def test_a_run_killed_again_and_again_equals_the_uninterrupted_one(
    whole: Any, toy: PreparedDataset, tmp_path: Path
) -> None:
    run = Run(toy, tmp_path)
    for attempt in range(6):
        with pytest.raises(Killed):
            run.start(resume=attempt > 0, kill_at=3)
    check_same(run, *run.start(resume=True), whole)


def test_a_run_killed_before_its_first_checkpoint_starts_afresh_metrics_included(
    whole: Any, toy: PreparedDataset, tmp_path: Path
) -> None:
    run = Run(toy, tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "recall@1": 0.5}\n')
    result, _ = run.start(resume=True)
    assert run.metrics() == whole[0].metrics()
    assert result.steps == 21


def test_resuming_a_finished_run_changes_nothing(
    whole: Any, toy: PreparedDataset, tmp_path: Path
) -> None:
    run = Run(toy, tmp_path)
    run.start()
    result, model = run.start(resume=True)
    check_same(run, result, model, whole)


def test_resuming_a_run_that_stopped_early_trains_no_further(
    toy: PreparedDataset, tmp_path: Path
) -> None:
    run = Run(toy, tmp_path)
    config = replace(CONFIG, epochs=9, patience=1)

    def worse(candidate: OnePiece) -> dict[str, float]:
        return {"recall@1": 0.5}

    first, model = run.start(config, validate=worse)
    assert (first.epochs, first.best_epoch) == (2, 1)
    second, again = run.start(config, resume=True, validate=worse)
    assert (second.epochs, second.steps) == (2, first.steps)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_a_run_without_resume_ignores_what_an_earlier_one_left(
    whole: Any, toy: PreparedDataset, tmp_path: Path
) -> None:
    run = Run(toy, tmp_path)
    with pytest.raises(Killed):
        run.start(replace(CONFIG, seed=5), kill_at=12)
    run.starts = 0
    check_same(run, *run.start(), whole)


@pytest.mark.parametrize(
    "other",
    [
        replace(CONFIG, seed=1),
        replace(CONFIG, optimizer=OptimizerConfig(lr=0.01)),
        replace(CONFIG, objective=ObjectiveConfig(prefix_weight=0.5)),
    ],
    ids=["seed", "rate", "objective"],
)
def test_a_checkpoint_of_another_config_is_refused(
    toy: PreparedDataset, tmp_path: Path, other: TrainConfig
) -> None:
    run = Run(toy, tmp_path)
    with pytest.raises(Killed):
        run.start(kill_at=2)
    with pytest.raises(ValueError, match="of another config"):
        run.start(other, resume=True)
    run.encoder = {"dropout": 0.1}
    with pytest.raises(ValueError, match="of another config"):
        run.start(resume=True)


def test_a_checkpoint_of_other_data_is_refused(toy: PreparedDataset, tmp_path: Path) -> None:
    run = Run(toy, tmp_path / "run")
    with pytest.raises(Killed):
        run.start(kill_at=2)
    run.dataset = toy_dataset(tmp_path / "other", hashes={"histories/00000.arrow": "changed"})
    with pytest.raises(ValueError, match="of another config or other data"):
        run.start(resume=True)
