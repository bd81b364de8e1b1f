from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import tiny_config, tiny_model
from torch import Tensor
from toy_run import CONFIG, CONTEXT, Killable, Killed, Run, check_same, recall

from recsys.context.loader import TrainingBatches, evaluation_batches
from recsys.data.dataset import PreparedDataset
from recsys.losses import softmax
from recsys.model.onepiece import OnePiece
from recsys.training import loop, objective
from recsys.training.loop import NonFiniteLossError, train
from recsys.training.objective import Objective, ObjectiveConfig
from recsys.training.optim import OptimizerConfig, lr_factor


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


def test_losses_are_computed_in_the_runs_precision_and_metrics_in_float32(
    toy: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[bool]] = {"loss": set(), "metric": set()}

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        seen["loss"].add(softmax._rounds.get())
        return softmax.full_softmax_loss(*args, **kwargs)

    def validate(candidate: OnePiece) -> dict[str, float]:
        seen["metric"].add(softmax._rounds.get())
        return {"recall@1": 0.0}

    monkeypatch.setattr(objective, "full_softmax_loss", watched)
    run = Run(toy, tmp_path)
    run.start(replace(CONFIG, epochs=1, precision="bf16"), validate=validate)
    assert seen == {"loss": {True}, "metric": {False}}
    with pytest.raises(Killed):
        run.start(replace(CONFIG, precision="bf16"), kill_at=1)
    assert not softmax._rounds.get()
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
