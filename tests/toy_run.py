"""Short training runs on the toy world that can be killed anywhere and started again."""

import json
from pathlib import Path
from typing import Any

import torch
from tiny_world import tiny_config
from torch import Tensor

from recsys.batch import ContextBatch, Labels
from recsys.context.config import ContextConfig
from recsys.context.loader import TrainingBatches, evaluation_batches
from recsys.data.dataset import PreparedDataset
from recsys.model.onepiece import OnePiece
from recsys.training.build import build_objective
from recsys.training.loop import TrainConfig, TrainResult, train
from recsys.training.objective import Objective, ObjectiveConfig
from recsys.training.optim import OptimizerConfig

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


def check_same(run: Run, result: TrainResult, model: OnePiece, whole: Any) -> None:
    reference, expected, weights = whole
    for name, value in weights.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert run.metrics() == reference.metrics()
    for name, value in reference.saved[-1].items():  # the averaged weights, of the best epoch
        assert torch.equal(run.saved[-1][name], value), name
    assert (result.best_metric, result.best_epoch) == (expected.best_metric, expected.best_epoch)
    assert (result.steps, result.epochs) == (expected.steps, expected.epochs)
