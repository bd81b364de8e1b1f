import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import tiny_config, tiny_model, toy_dataset
from torch import Tensor

from recsys.batch import ContextBatch, Labels
from recsys.context.config import ContextConfig
from recsys.context.loader import TrainingBatches, evaluation_batches
from recsys.data.dataset import PreparedDataset
from recsys.model.onepiece import OnePiece
from recsys.training import loop
from recsys.training.build import build_objective
from recsys.training.loop import NonFiniteLossError, TrainConfig, TrainResult, train
from recsys.training.objective import Objective, ObjectiveConfig
from recsys.training.optim import OptimizerConfig, lr_factor

CONTEXT = ContextConfig(max_history=6, requests_per_row=2)
CONFIG = TrainConfig(
    epochs=3,
    batch_rows=10,
    patience=0,
    metric="recall@1",
    checkpoint_every_s=0.0,
    ema_decay=0.8,
    optimizer=OptimizerConfig(lr=0.02, warmup_steps=3, weight_decay=0.1),
    objective=ObjectiveConfig(step_losses=("sampled_softmax", "i2u"), num_negatives=8),
)


def recall(model: OnePiece, dataset: PreparedDataset, part: Any = "validation") -> float:
    """Share of targets scored above every other item; draws a random number, as a job might."""
    torch.rand(3)
    hits = total = 0
    for batch in evaluation_batches(dataset, CONTEXT, part=part, batch_size=50):
        query = list(model.queries(batch.context).values())[-1][:, 0]
        scores = query @ model.item_vectors().T
        scores[:, :2] = -torch.inf
        hits += int((scores.argmax(dim=1) == batch.target).sum())
        total += len(batch.target)
    return hits / total


class Killed(BaseException):
    pass


class Killable(Objective):
    """Stops the process, so to speak, before a given step of this run."""

    steps_left: int | None = None

    def __call__(
        self, model: OnePiece, batch: ContextBatch, labels: Labels, *, reason: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.steps_left is not None:
            if self.steps_left == 0:
                raise Killed
            self.steps_left -= 1
        return super().__call__(model, batch, labels, reason=reason)


class Run:
    """One folder; every start builds everything anew, weights of its own included."""

    def __init__(self, dataset: PreparedDataset, folder: Path, **encoder: Any) -> None:
        self.dataset, self.folder, self.encoder = dataset, folder, encoder
        self.saved: list[dict[str, Tensor]] = []
        self.starts = 0
        folder.mkdir(exist_ok=True)

    def start(
        self,
        config: TrainConfig = CONFIG,
        *,
        resume: bool = False,
        kill_at: int | None = None,
        kill_in: str = "",
        **options: Any,
    ) -> tuple[TrainResult, OnePiece]:
        torch.manual_seed(self.starts)
        encoder = {"dropout": 0.25, "max_history": 6, **self.encoder}
        parts = tiny_config(self.dataset, encoder=encoder, reasoner={"num_steps": 1})
        model = OnePiece(parts, self.dataset.catalogue)
        if self.starts:  # a resumed run must not live on the weights it was built with
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(7)
        self.starts += 1
        objective = build_objective(config.objective, self.dataset)
        objective.__class__ = Killable
        objective.steps_left = kill_at
        visits = {"validate": 0, "save_best": 0}

        def visit(name: str) -> None:
            visits[name] += 1
            if kill_in == f"{name} {visits[name]}":
                raise Killed

        def validate(candidate: OnePiece) -> dict[str, float]:
            visit("validate")
            assert not candidate.training
            return {"recall@1": recall(candidate, self.dataset)}

        def save_best(candidate: OnePiece) -> None:
            visit("save_best")
            self.saved.append({k: v.clone() for k, v in candidate.state_dict().items()})

        result = train(
            model,
            TrainingBatches(self.dataset, CONTEXT, rows=config.batch_rows, seed=config.seed),
            objective,
            config,
            folder=self.folder,
            validate=options.pop("validate", validate),
            save_best=save_best,
            resume=resume,
            **options,
        )
        return result, model

    def metrics(self) -> list[dict[str, Any]]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def whole(
    toy: PreparedDataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, TrainResult, OnePiece]:
    """The uninterrupted run: 3 epochs of 7 steps."""
    run = Run(toy, tmp_path_factory.mktemp("whole"))
    result, model = run.start()
    assert result.steps == 21
    return run, result, model


def check_same(run: Run, result: TrainResult, model: OnePiece, whole: Any) -> None:
    reference, expected, weights = whole
    for name, value in weights.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert run.metrics() == reference.metrics()
    for name, value in reference.saved[-1].items():  # the averaged weights, of the best epoch
        assert torch.equal(run.saved[-1][name], value), name
    assert (result.best_metric, result.best_epoch) == (expected.best_metric, expected.best_epoch)
    assert (result.steps, result.epochs) == (expected.steps, expected.epochs)


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


def test_training_finds_the_rule_of_the_toy_world(toy: PreparedDataset, tmp_path: Path) -> None:
    """Sixty steps: the next item follows from the last one, which popularity cannot know."""
    config = replace(
        CONFIG,
        epochs=9,
        ema_decay=0.0,
        checkpoint_every_s=300.0,
        optimizer=OptimizerConfig(lr=0.03, warmup_steps=5),
        objective=ObjectiveConfig(),
    )
    run = Run(toy, tmp_path, dropout=0.0, init_std=0.1)
    result, model = run.start(config)
    assert result.steps == 63
    lines = run.metrics()
    assert lines[-1]["loss/total"] < 0.35 * lines[0]["loss/total"]
    popular = int(toy.catalogue.train_count[2:].argmax()) + 2
    targets = torch.cat(
        [b.target for b in evaluation_batches(toy, CONTEXT, part="test", batch_size=50)]
    )
    by_popularity = float((targets == popular).float().mean())
    found = recall(model.eval(), toy, "test")
    assert found > 0.9 > 3 * by_popularity


def test_the_average_of_the_weights_is_what_is_validated_and_saved(
    toy: PreparedDataset, tmp_path: Path
) -> None:
    config = replace(CONFIG, epochs=1)
    run = Run(toy, tmp_path)
    seen: list[Tensor] = []

    def validate(candidate: OnePiece) -> dict[str, float]:
        seen.append(candidate.answer_norm.weight.detach().clone())
        return {"recall@1": 0.0}

    _, model = run.start(config, validate=validate)
    last = model.answer_norm.weight.detach()
    saved = run.saved[0]["answer_norm.weight"]
    assert torch.equal(seen[0], saved)
    assert not torch.equal(saved, last)  # training itself ends with the plain weights
    # The average lies between the start (all ones) and where training went.
    assert (saved - 1).norm() < (last - 1).norm()


def test_the_average_forgets_at_the_stated_rate(toy: PreparedDataset, tmp_path: Path) -> None:
    before: list[Tensor] = []

    class Watched(Objective):
        def __call__(self, model: OnePiece, *args: Any, **kwargs: Any) -> Any:
            before.append(model.answer_norm.weight.detach().clone())
            return super().__call__(model, *args, **kwargs)

    saved: list[Tensor] = []
    model = OnePiece(tiny_config(toy, encoder={"max_history": 6}), toy.catalogue)
    train(
        model,
        TrainingBatches(toy, CONTEXT, rows=10),
        Watched(ObjectiveConfig()),
        replace(CONFIG, epochs=1, objective=ObjectiveConfig()),
        folder=tmp_path,
        validate=lambda m: {"recall@1": 0.0},
        save_best=lambda m: saved.append(m.answer_norm.weight.detach().clone()),
    )
    average = before[0]
    for weights in [*before[1:], model.answer_norm.weight.detach()]:
        average = 0.8 * average + 0.2 * weights
    torch.testing.assert_close(saved[0], average)


def test_random_numbers_that_validation_draws_change_no_training(
    whole: Any, toy: PreparedDataset, tmp_path: Path
) -> None:
    def quiet(candidate: OnePiece) -> dict[str, float]:
        state = torch.get_rng_state()
        found = {"recall@1": recall(candidate, toy)}
        torch.set_rng_state(state)
        return found

    run = Run(toy, tmp_path)
    check_same(run, *run.start(validate=quiet), whole)


def test_early_stopping_waits_for_the_patience_and_keeps_the_best(
    toy: PreparedDataset, tmp_path: Path
) -> None:
    scores = iter([0.1, 0.3, 0.2, 0.3, 0.9])
    run = Run(toy, tmp_path)
    config = replace(CONFIG, epochs=5, patience=2)
    result, _ = run.start(config, validate=lambda m: {"recall@1": next(scores)})
    assert (result.epochs, result.best_epoch, result.best_metric) == (4, 2, 0.3)
    assert len(run.saved) == 2


def test_validation_comes_as_often_as_asked_and_at_the_end(
    toy: PreparedDataset, tmp_path: Path
) -> None:
    run = Run(toy, tmp_path)
    config = replace(CONFIG, epochs=3, validate_every=2)
    run.start(config)
    assert ["recall@1" in line for line in run.metrics()] == [False, True, True]


def test_steps_join_from_the_declared_epoch_on(toy: PreparedDataset, tmp_path: Path) -> None:
    run = Run(toy, tmp_path)
    run.start(replace(CONFIG, epochs=2, reason_from_epoch=1))
    first, second = run.metrics()
    assert not any(name.startswith("loss/step") for name in first)
    assert any(name.startswith("loss/step") for name in second)


def test_a_metric_that_validation_does_not_know_is_refused(
    toy: PreparedDataset, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"train\.metric \('ndcg@9'\) must be one of \['recall@1'\]"
    ):
        Run(toy, tmp_path).start(replace(CONFIG, metric="ndcg@9"))


def test_a_loss_that_is_not_finite_stops_the_run_and_trains_nothing(
    toy: PreparedDataset, tmp_path: Path
) -> None:
    class Explodes(Killable):
        def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
            total, terms = super().__call__(*args, **kwargs)
            self.calls = getattr(self, "calls", 0) + 1
            return (total * float("nan") if self.calls == 4 else total), terms

    model = OnePiece(tiny_config(toy, encoder={"max_history": 6}), toy.catalogue)
    objective = Explodes(ObjectiveConfig())
    before: list[Tensor] = []
    original = Explodes.__call__

    def recording(self: Explodes, *args: Any, **kwargs: Any) -> Any:
        before[:] = [p.detach().clone() for p in model.parameters()]
        return original(self, *args, **kwargs)

    Explodes.__call__ = recording  # type: ignore[method-assign]
    with pytest.raises(
        NonFiniteLossError, match=r"step 3 \(epoch 0, batch 3\): the loss is nan.*lr \(0\.02\)"
    ):  # noqa: E501
        train(
            model,
            TrainingBatches(toy, CONTEXT, rows=10),
            objective,
            CONFIG,
            folder=tmp_path,
            validate=lambda m: {"recall@1": 0.0},
            save_best=lambda m: None,
        )
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_an_infinite_gradient_stops_the_run_too(toy: PreparedDataset, tmp_path: Path) -> None:
    class Explodes(Objective):
        def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
            total, terms = super().__call__(*args, **kwargs)
            total.register_hook(lambda g: g * float("inf"))
            return total, terms

    model = OnePiece(tiny_config(toy, encoder={"max_history": 6}), toy.catalogue)
    with pytest.raises(NonFiniteLossError, match="step 0"):
        train(
            model,
            TrainingBatches(toy, CONTEXT, rows=10),
            Explodes(ObjectiveConfig()),
            CONFIG,
            folder=tmp_path,
            validate=lambda m: {"recall@1": 0.0},
            save_best=lambda m: None,
        )


def test_the_recorded_rate_is_that_of_the_epochs_last_step(whole: Any) -> None:
    run, _, _ = whole
    rates = [line["lr"] for line in run.metrics()]
    assert rates == [0.02 * lr_factor(s, 21, CONFIG.optimizer) for s in (6, 13, 20)]


def test_training_ends_in_the_precision_and_mode_it_was_started_in(
    toy: PreparedDataset, tmp_path: Path
) -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    seen = []

    def validate(candidate: OnePiece) -> dict[str, float]:
        seen.append(torch.backends.mkldnn.matmul.fp32_precision)
        return {"recall@1": 0.0}

    run = Run(toy, tmp_path)
    run.start(replace(CONFIG, epochs=1, precision="bf16"), validate=validate)
    assert seen == ["ieee"]  # metrics are made in float32 whatever training uses
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"
    with pytest.raises(Killed):
        run.start(replace(CONFIG, precision="bf16"), kill_at=1)
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"


def test_isolated_steps_leave_the_prefix_head_as_it_would_be_alone(
    toy: PreparedDataset, tmp_path: Path
) -> None:
    """Bit for bit, where nothing couples them: no dropout and no clipping by the global norm."""
    config = replace(
        CONFIG,
        epochs=2,
        optimizer=OptimizerConfig(lr=0.02, warmup_steps=3, clip_norm=0.0),
        objective=ObjectiveConfig(),
    )
    weights: list[dict[str, Tensor]] = []
    for step_weight in (0.0, 1.0):
        options = {"encoder": {"max_history": 6, "relative_bias": True}}
        parts = tiny_config(toy, **options, reasoner={"isolated": True})
        torch.manual_seed(0)
        model = OnePiece(parts, toy.catalogue)
        objective = replace(config.objective, step_weight=step_weight)
        folder = tmp_path / str(step_weight)
        folder.mkdir()
        train(
            model,
            TrainingBatches(toy, CONTEXT, rows=10),
            Objective(objective),
            replace(config, objective=objective),
            folder=folder,
            validate=lambda m: {"recall@1": 0.0},
            save_best=lambda m: None,
        )
        weights.append(model.state_dict())
    alone, together = weights
    own = ("reasoner.", "request_tokens.", "latent_norm.")
    for name, value in alone.items():
        assert torch.equal(together[name], value) or name.startswith(own), name
    assert not torch.equal(alone["reasoner.step"], together["reasoner.step"])


@pytest.mark.gpu
def test_training_runs_on_a_gpu_and_resumes_there(toy: PreparedDataset, tmp_path: Path) -> None:
    run = Run(toy, tmp_path)
    objective = ObjectiveConfig(
        prefix_loss="sampled_softmax", targets="coarse_to_fine", teacher_weight=0.5, num_negatives=4
    )
    config = replace(CONFIG, objective=objective)
    options: dict[str, Any] = {"device": "cuda", "validate": lambda m: {"recall@1": 0.0}}
    with pytest.raises(Killed):
        run.start(config, kill_at=9, **options)
    result, model = run.start(config, resume=True, **options)
    assert result.steps == 21
    assert all(p.isfinite().all() for p in model.parameters())


def test_throughput_counts_real_targets(whole: Any, toy: PreparedDataset) -> None:
    _, result, _ = whole
    targets = sum(int((b.train_end - 1).clamp(min=0).sum()) for b in toy.buckets)
    assert result.targets_per_second * result.seconds == pytest.approx(3 * targets, rel=1e-6)


def test_large_gradients_of_isolated_steps_leave_those_of_the_prefix_head_uncut(
    rich: PreparedDataset,
) -> None:
    for isolated in (True, False):
        model = tiny_model(rich, reasoner={"isolated": isolated})
        for name, parameter in model.named_parameters():
            parameter.grad = torch.zeros_like(parameter)
            if name == "answer_norm.weight":
                parameter.grad[0] = 0.5
            if name == "latent_norm.weight":
                parameter.grad[0] = 100.0
        assert loop._clip(model, 1.0) == pytest.approx(100.0 if isolated else 100.00125)
        kept = model.answer_norm.weight.grad
        assert kept is not None
        assert kept[0].item() == pytest.approx(0.5 if isolated else 0.005, rel=1e-3)
        parts = [id(p) for part in model.independent_parts() for p in part]
        assert sorted(parts) == sorted(id(p) for p in model.parameters())
