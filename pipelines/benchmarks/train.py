"""Training speed: the prefix head against RecTools' SASRec; reasoning against the prefix head.

Counted are real targets: history positions that are supervised, or reasoned requests; never
padding. Our steps are those of ``recsys.training.loop``, the assembling of batches included where
the peer's is.
"""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipelines.benchmarks.figures import Record, Rows, Spread, in_turns, ratio
from pipelines.benchmarks.peer import Peer
from pipelines.benchmarks.setting import (
    Log,
    Setting,
    named_run,
    open_log,
    untrained,
    use_threads,
)
from pipelines.configs import RunConfig, prefix_only
from recsys.batch import ContextBatch, Labels, Requests
from recsys.context.loader import TrainingBatches
from recsys.data.dataset import PreparedDataset
from recsys.training.build import build_objective
from recsys.training.optim import build_optimizer
from recsys.training.seed import Precision, in_precision, keep_freed_memory
from recsys.types import PAD

Batch = tuple[ContextBatch, Labels]
PEER_PRECISION: dict[Precision, str] = {"float32": "32-true", "bf16": "bf16-mixed"}
WARM_UP = 5
"""Untimed steps, ours and the peer's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainBenchmark:
    """What to train, and for how long."""

    run: str = "ml-1m"
    """Named run with a reasoner; its prefix-only twin is what the peer is compared with."""
    precisions: tuple[Precision, ...] = ("float32", "bf16")
    seconds: float = 20.0
    """Training time of one measurement of one side against the peer."""
    requests_per_row: int = 16
    """Requests of a row of the packed batches."""
    batches: int = 8
    """Batches whose steps are compared with and without reasoning."""
    peer: bool = True
    """Compare with the peer; off leaves our own ratios."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.seconds <= 0 or self.requests_per_row < 1 or self.batches < 1:
            raise ValueError(
                f"seconds ({self.seconds}) must be above 0, requests_per_row "
                f"({self.requests_per_row}) and batches ({self.batches}) at least 1."
            )


class Stepper:
    """One training step after another, as the training loop takes them.

    Args:
        run: What to train; its precision is not set here, see ``timed``.
        dataset: The data.
    """

    def __init__(self, run: RunConfig, dataset: PreparedDataset) -> None:
        self.model = untrained(run, dataset).train()
        self.objective = build_objective(run.train.objective, dataset)
        self.optimizer = build_optimizer(self.model, run.train.optimizer)
        self.clip_norm = run.train.optimizer.clip_norm or math.inf

    def __call__(self, batch: ContextBatch, labels: Labels) -> None:
        """Take one step."""
        total, terms = self.objective(self.model, batch, labels)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        if not math.isfinite(float(norm)) or not math.isfinite(float(total.detach())):
            raise ValueError("A step of the benchmark was not finite.")
        self.optimizer.step()
        for term in terms.values():
            float(term)


def benchmark_train(setting: Setting, config: TrainBenchmark) -> dict[str, Any]:
    """Measure training.

    Args:
        setting: Where to work and on what.
        config: What and how long.

    Returns:
        The results, as saved.
    """
    record = Record("train", setting)
    use_threads(setting)
    keep_freed_memory()
    log, run = open_log(setting), named_run(config.run)
    results: dict[str, Any] = {"log": log.facts, "run": config.run}
    rows: Rows = [("log", ", ".join(f"{k} {v}" for k, v in log.facts.items()))]
    peer = Peer.of(setting, record) if config.peer else None
    for precision in config.precisions:
        found: dict[str, Any] = {}
        with in_precision(precision):
            if peer is not None:
                found["against_peer"] = against_peer(setting, config, log, run, precision, peer)
                rows += _peer_rows(precision, found["against_peer"])
            found["reasoning"] = reasoning(setting, config, log, run)
        rows += _reasoning_rows(precision, found["reasoning"])
        results[precision] = found
    record.save(results, rows)
    return results


def against_peer(
    setting: Setting,
    config: TrainBenchmark,
    log: Log,
    run: RunConfig,
    precision: Precision,
    peer: Peer,
) -> dict[str, Any]:
    """Real targets a second of the prefix head and of the peer, in turns."""
    prefix = prefix_only(run)
    stepper = Stepper(prefix, log.dataset)
    stream = endless(TrainingBatches(log.dataset, prefix.context, rows=prefix.train.batch_rows))
    for batch, labels in itertools.islice(stream, WARM_UP):
        stepper(batch, labels)

    def ours() -> float:
        started, targets = time.perf_counter(), 0
        while time.perf_counter() - started < config.seconds:
            batch, labels = next(stream)
            stepper(batch, labels)
            targets += labels.num_targets
        return targets / (time.perf_counter() - started)

    def theirs() -> float:
        result = peer.run(
            "train-speed", log, run, out=setting.out / "peer" / f"train-{precision}",
            batch_size=run.train.batch_rows, seconds=config.seconds, epochs=10_000,
            warmup_steps=WARM_UP, precision=PEER_PRECISION[precision],
        )  # fmt: skip
        return float(result["targets_per_second"])

    found = in_turns(setting.repeats, {"ours": ours, "peer": theirs})
    return {
        "ours_targets_per_second": Spread.of(found["ours"]),
        "peer_targets_per_second": Spread.of(found["peer"]),
        "ratio": ratio(found["ours"], found["peer"]),
    }


def reasoning(setting: Setting, config: TrainBenchmark, log: Log, run: RunConfig) -> dict[str, Any]:
    """Steps with reasoning against steps without, and packed requests against one a row."""
    rows = run.train.batch_rows

    def some(requests: int) -> tuple[list[Batch], float]:
        context = replace(run.context, requests_per_row=requests)
        started = time.perf_counter()
        batches = endless(TrainingBatches(log.dataset, context, rows=rows))
        found = list(itertools.islice(batches, config.batches))
        return found, (time.perf_counter() - started) / config.batches

    packed, packed_s = some(config.requests_per_row)
    plain, plain_s = some(0)
    single, _ = some(1)
    own_rows = [_sample(one_request_a_row(*batch, rows)) for batch in packed]
    own = list(itertools.chain.from_iterable(own_rows))
    prefix, full = Stepper(prefix_only(run), log.dataset), Stepper(run, log.dataset)
    steps_only = replace(run.train.objective, prefix_weight=0.0)
    bare = Stepper(replace(run, train=replace(run.train, objective=steps_only)), log.dataset)
    sides = {
        "prefix_only": (prefix, plain),
        "packed": (full, packed),
        "one_request_a_row": (full, single),
        "own_rows": (full, own),
        "own_rows_steps_loss_only": (bare, own),
    }
    for stepper, batches in sides.values():
        stepper(*batches[0])
    found = in_turns(
        setting.repeats,
        {name: (lambda side=side: _timed(*side)) for name, side in sides.items()},  # type: ignore[misc]
    )
    targets = {name: sum(reasoned(labels) for _, labels in b) for name, (_, b) in sides.items()}
    speed = {
        name: [targets[name] / s for s in found[name]] for name in sides if name != "prefix_only"
    }
    return {
        "num_steps": run.reasoner.num_steps,
        "requests_per_row": config.requests_per_row,
        "step_ms": {
            name: Spread.of([1e3 * s / len(sides[name][1]) for s in found[name]]) for name in sides
        },
        "assembly_ms": {"packed": 1e3 * packed_s, "prefix_only": 1e3 * plain_s},
        "shapes": {name: [_shape(*batch) for batch in b] for name, (_, b) in sides.items()},
        "step_ratio": ratio(found["packed"], found["prefix_only"]),
        "reasoned_targets_per_second": {name: Spread.of(values) for name, values in speed.items()},
        "packed_over": {
            name: ratio(speed["packed"], speed[name]) for name in speed if name != "packed"
        },
    }  # fmt: skip


def _timed(stepper: Stepper, batches: Sequence[Batch]) -> float:
    """Seconds of one step on each batch."""
    started = time.perf_counter()
    for batch, labels in batches:
        stepper(batch, labels)
    return time.perf_counter() - started


def endless(batches: TrainingBatches) -> Iterator[Batch]:
    """Epoch after epoch."""
    for epoch in itertools.count():
        yield from batches.epoch(epoch)


def reasoned(labels: Labels) -> int:
    """Requests with an answer to learn."""
    return int((labels.task_item[..., -1] != PAD).sum())


def _shape(batch: ContextBatch, labels: Labels) -> dict[str, int]:
    rows, tokens = batch.history.item.shape
    return {
        "rows": rows,
        "tokens": tokens,
        "real_tokens": int(batch.history.lengths.sum()),
        "requests": batch.requests.cut.shape[1],
        "prefix_targets": labels.num_targets,
        "reasoned_targets": reasoned(labels),
    }


def one_request_a_row(batch: ContextBatch, labels: Labels, rows: int) -> list[Batch]:
    """Unpack shared prefixes: every request becomes a row that holds the history before its cut.

    Args:
        batch: Rows with many requests each, of histories without blocks.
        labels: Their labels.
        rows: Rows of each batch returned.

    Returns:
        Batches of rows that are about equally long, so that little is padding, shortest first.
    """
    row, request = batch.requests.is_real.nonzero(as_tuple=True)
    cut = batch.requests.cut[row, request]
    order = torch.argsort(cut, stable=True)
    found = []
    for chosen in order.split(rows):  # type: ignore[no-untyped-call]
        b, q, length = row[chosen], request[chosen], cut[chosen]
        width = max(1, int(length.max()))
        inside = torch.arange(width) < length[:, None]

        def before(value: Tensor, b: Tensor = b, inside: Tensor = inside) -> Tensor:
            return value[b, : inside.shape[1]].masked_fill(~inside, 0)

        def own(value: Tensor, b: Tensor = b, q: Tensor = q) -> Tensor:
            return value[b, q][:, None]

        history = replace(
            batch.history,
            **{name: before(getattr(batch.history, name)) for name in _TOKENS},
            lengths=length,
            features={name: before(value) for name, value in batch.history.features.items()},
        )
        asked = batch.requests
        requests = Requests(
            cut=own(asked.cut),
            is_real=own(asked.is_real),
            timestamp=own(asked.timestamp),
            gap=own(asked.gap),
            situation={name: own(value) for name, value in asked.situation.items()},
        )
        user = {name: value[b] for name, value in batch.user.items()}
        answers = Labels(before(labels.next_item), own(labels.task_item))
        found.append((ContextBatch(history, requests, user), answers))
    return found


_TOKENS = ("item", "behavior", "timestamp", "gap", "block")


def _sample(batches: list[Batch], number: int = 2) -> list[Batch]:
    """A few of the batches, spread evenly over their lengths."""
    if len(batches) <= number:
        return batches
    return [batches[(2 * i + 1) * len(batches) // (2 * number)] for i in range(number)]


def _peer_rows(precision: str, found: dict[str, Any]) -> Rows:
    return [
        (f"{precision}: ours, prefix head", found["ours_targets_per_second"].show(" targets/s")),
        (f"{precision}: RecTools SASRec", found["peer_targets_per_second"].show(" targets/s")),
        (f"{precision}: ours ÷ peer", found["ratio"].show("×", 2)),
    ]


def _reasoning_rows(precision: str, found: dict[str, Any]) -> Rows:
    speed, over = found["reasoned_targets_per_second"], found["packed_over"]
    head = f"K = {found['num_steps']}, {found['requests_per_row']} requests a row"
    return [
        (f"{precision}: {head}", speed["packed"].show(" reasoned targets/s")),
        (f"{precision}: step ÷ prefix-only step", found["step_ratio"].show("×", 2)),
        (f"{precision}: ÷ one request a row", over["one_request_a_row"].show("×", 2)),
        (f"{precision}: ÷ a row a request", over["own_rows"].show("×", 2)),
        (f"{precision}: ÷ that without prefix loss", over["own_rows_steps_loss_only"].show("×", 2)),
    ]  # fmt: skip
