"""The training loop: step, clip, log, validate, stop, checkpoint, resume. No globals."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from recsys.config import to_dict
from recsys.context.loader import TrainingBatches
from recsys.model.onepiece import OnePiece
from recsys.training.checkpoint import (
    RunState,
    append_jsonl,
    drop_later_lines,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from recsys.training.objective import Objective, ObjectiveConfig
from recsys.training.optim import OptimizerConfig, build_optimizer, lr_factor
from recsys.training.seed import Precision, in_precision, seed_everything

logger = logging.getLogger(__name__)

Validate = Callable[[OnePiece], dict[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long, how fast, how often."""

    epochs: int = 20
    batch_rows: int = 128
    """Histories a step; about ``batch_rows * max_history`` targets at most."""
    seed: int = 0
    precision: Precision = "float32"
    """``bf16`` rounds the factors of the full softmax's products; see ``in_precision``."""
    validate_every: int = 1
    """Epochs between validations."""
    patience: int = 5
    """Validations without a better metric before the run stops; 0 never stops early."""
    metric: str = "ndcg@10"
    """Which of the validation's numbers is maximised."""
    reason_from_epoch: int = 0
    """Epochs that train the prefix head alone before the steps join: a warm start."""
    checkpoint_every_s: float = 300.0
    """Seconds between checkpoints, beside the one at the end of each epoch."""
    ema_decay: float = 0.0
    """Validate and keep an exponential moving average of the weights; 0 keeps the weights."""
    threads: int = 0
    """Processor threads; 0 leaves torch's choice. A resumed run must use the same number."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run reached."""

    best_metric: float | None
    best_epoch: int
    epochs: int
    steps: int
    seconds: float
    targets_per_second: float
    """Real supervised history positions per second of training."""


class NonFiniteLossError(ValueError):
    """The loss or a gradient was infinite or not a number; nothing was trained on it."""


def config_hash(*configs: Any) -> str:
    """SHA-256 of configs as JSON, in hexadecimal."""
    text = json.dumps([to_dict(config) for config in configs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def train(
    model: OnePiece,
    batches: TrainingBatches,
    objective: Objective,
    config: TrainConfig,
    *,
    folder: Path,
    validate: Validate,
    save_best: Callable[[OnePiece], None],
    resume: bool = False,
    device: torch.device | str = "cpu",
) -> TrainResult:
    """Train until the epochs are done or validation stops getting better.

    A run that is killed at any step and resumed ends with the same weights, bit for bit, as one
    that was not (CPU, same machine, versions and number of threads).

    Args:
        model: To train, in place; ends with the last weights, the best ones are what
            ``save_best`` was called with.
        batches: The training part.
        objective: Losses.
        config: Length, rates, seed.
        folder: Where ``metrics.jsonl`` and ``checkpoints/`` go.
        validate: Model in evaluation mode → metrics; ``config.metric`` must be among them.
        save_best: Called with the model whenever the metric is the best so far.
        resume: Go on from the latest checkpoint in ``folder``, if there is one.
        device: Where to compute.

    Returns:
        The best metric and what it took.

    Raises:
        NonFiniteLossError: If a loss or gradient is not finite; the step is named.
        ValueError: If ``config.metric`` is not among the validation's numbers, or a checkpoint
            does not fit.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    seed_everything(config.seed)
    model.to(device)
    optimizer = build_optimizer(model, config.optimizer)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    average = {k: p.detach().clone() for k, p in trained.items()} if config.ema_decay else {}
    fingerprint = config_hash(config, model.config, batches.config, batches.dataset.manifest)
    state = RunState(config_hash=fingerprint, threads=torch.get_num_threads())
    checkpoints = folder / "checkpoints"
    if resume and has_checkpoint(checkpoints):
        state = load_checkpoint(checkpoints, model, optimizer, average, config_hash=fingerprint)
        if state.threads != torch.get_num_threads():
            logger.warning(
                "resumed with %d threads, started with %d: results will differ in the last bits",
                torch.get_num_threads(),
                state.threads,
            )
    drop_later_lines(folder / "metrics.jsonl", state.epoch)
    steps_an_epoch = batches.num_batches()
    total_steps = config.epochs * steps_an_epoch
    seen_targets, started_step = 0, state.step
    started_seconds = state.seconds
    with _progress() as progress:
        bar = progress.add_task("train", total=total_steps, completed=state.step)
        while state.epoch < config.epochs and not _out_of_patience(state, config):
            model.train()
            sums = dict(state.sums)
            since, last_saved = time.perf_counter(), time.perf_counter()
            for batch, labels in batches.epoch(state.epoch, start=state.batch):
                factor = lr_factor(state.step, total_steps, config.optimizer)
                for group in optimizer.param_groups:
                    group["lr"] = config.optimizer.lr * factor
                reason = state.epoch >= config.reason_from_epoch
                batch, labels = batch.to(device), labels.to(device)
                with in_precision(config.precision, device):
                    total, terms = objective(model, batch, labels, reason=reason)
                optimizer.zero_grad(set_to_none=True)
                total.backward()  # type: ignore[no-untyped-call]
                norm = _clip(model, config.optimizer.clip_norm)
                if not math.isfinite(norm) or not math.isfinite(float(total.detach())):
                    raise NonFiniteLossError(
                        f"step {state.step} (epoch {state.epoch}, batch {state.batch}): the loss "
                        f"is {float(total.detach())} and the gradient norm {norm}; lower "
                        f"train.optimizer.lr ({config.optimizer.lr}) or look at that batch."
                    )
                optimizer.step()
                with torch.no_grad():
                    for name, mean in average.items():
                        mean.lerp_(trained[name], 1 - config.ema_decay)
                seen_targets += labels.num_targets
                for name, term in {"total": total.detach(), **terms}.items():
                    sums[name] = sums.get(name, 0.0) + float(term)
                state = replace(state, step=state.step + 1, batch=state.batch + 1)
                progress.update(bar, completed=state.step, description=f"epoch {state.epoch}")
                if time.perf_counter() - last_saved > config.checkpoint_every_s:
                    now = time.perf_counter()
                    state = replace(state, seconds=state.seconds + now - since, sums=dict(sums))
                    save_checkpoint(checkpoints, model, optimizer, average, state)
                    since = last_saved = time.perf_counter()
            spent = time.perf_counter() - since
            steps = max(1, state.batch)
            state = replace(
                state, epoch=state.epoch + 1, batch=0, sums={}, seconds=state.seconds + spent
            )
            factor = lr_factor(state.step - 1, total_steps, config.optimizer)
            record: dict[str, Any] = {
                "epoch": state.epoch,
                "step": state.step,
                "seconds": round(state.seconds, 3),
                "lr": config.optimizer.lr * factor,
                **{f"loss/{name}": value / steps for name, value in sums.items()},
            }
            is_last = state.epoch == config.epochs
            if state.epoch % config.validate_every == 0 or is_last:
                metrics = _validate(model, average, validate, config)
                record |= metrics
                if state.best_metric is None or metrics[config.metric] > state.best_metric:
                    state = replace(
                        state, best_metric=metrics[config.metric], best_epoch=state.epoch
                    )
                    with _averaged(model, average):
                        save_best(model)
            append_jsonl(folder / "metrics.jsonl", record)
            logger.info(_line(record, config))
            save_checkpoint(checkpoints, model, optimizer, average, state)
    trained_s = state.seconds - started_seconds
    return TrainResult(
        best_metric=state.best_metric,
        best_epoch=state.best_epoch,
        epochs=state.epoch,
        steps=state.step,
        seconds=state.seconds,
        targets_per_second=seen_targets / trained_s if state.step > started_step else 0.0,
    )


def _out_of_patience(state: RunState, config: TrainConfig) -> bool:
    waited = state.epoch - max(0, state.best_epoch)
    return config.patience > 0 and waited >= config.patience * config.validate_every


def _line(record: dict[str, Any], config: TrainConfig) -> str:
    """An epoch in one readable line; all of it is in ``metrics.jsonl``."""
    parts = [f"epoch {record['epoch']}/{config.epochs}", f"loss {record['loss/total']:.3f}"]
    heads = [name for name in record if name.endswith(f"/{config.metric}")]
    parts += [f"{name} {record[name]:.4f}" for name in (heads or [config.metric]) if name in record]
    return ", ".join([*parts, f"{record['seconds']:.0f} s"])


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=2,
    )


def _clip(model: OnePiece, limit: float) -> float:
    """Largest gradient norm of the model's independent parts, each cut to the limit on its own."""
    norms = [
        torch.nn.utils.clip_grad_norm_([p for p in part if p.grad is not None], limit or math.inf)
        for part in model.independent_parts()
    ]
    return float(torch.stack([norm.float() for norm in norms]).max())


@contextmanager
def _averaged(model: OnePiece, average: dict[str, Tensor]) -> Iterator[None]:
    """The model in evaluation mode with the averaged weights, if there are any, for a while."""
    parameters = dict(model.named_parameters())
    kept = {name: parameters[name].detach().clone() for name in average}
    model.eval()
    with torch.no_grad():
        for name, value in average.items():
            parameters[name].copy_(value)
        try:
            yield
        finally:
            for name, value in kept.items():
                parameters[name].copy_(value)
            model.train()


def _validate(
    model: OnePiece, average: dict[str, Tensor], validate: Validate, config: TrainConfig
) -> dict[str, float]:
    """Metrics in float32; the training's random numbers are left as they were."""
    state = torch.get_rng_state()
    with _averaged(model, average):
        metrics = validate(model)
    torch.set_rng_state(state)
    if config.metric not in metrics:
        raise ValueError(f"train.metric ({config.metric!r}) must be one of {sorted(metrics)}.")
    return metrics
