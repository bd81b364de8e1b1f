"""Every field of every config changes something: a field that nothing reads fails here.

Each case changes one field of a base config and looks at everything the part does: outputs,
gradients and parameter shapes of a model, tensors of a batch, terms of an objective, weights and
files of a run. The same config twice must look the same, so that a change means the field.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import User, randomise, tiny_config, write_dataset
from torch import Tensor

from recsys.batch import CandidateSet
from recsys.context.anchors import AnchorReader
from recsys.context.config import ContextConfig
from recsys.context.loader import TrainingBatches, evaluation_batches
from recsys.data.anchor_fit import fit_anchors
from recsys.data.anchors import AnchorsConfig
from recsys.data.dataset import PreparedDataset
from recsys.losses import softmax
from recsys.model.config import EncoderConfig, RankerConfig, ReasonerConfig
from recsys.model.onepiece import OnePiece
from recsys.training import loop
from recsys.training.build import build_objective
from recsys.training.candidates import CandidateConfig, draw_candidates
from recsys.training.loop import TrainConfig, train
from recsys.training.objective import ObjectiveConfig
from recsys.training.optim import OptimizerConfig

Look = Callable[..., str]


def digest(*parts: Any) -> str:
    """One string for tensors, lists of them and plain values."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            sha.update(str((part.dtype, tuple(part.shape))).encode())
            sha.update(part.detach().contiguous().numpy().tobytes())
        else:
            sha.update(repr(part).encode())
    return sha.hexdigest()


def look_at_model(data: PreparedDataset, tmp_path: Path, **parts: Any) -> str:
    """Outputs and gradients of one training step, with the shapes of all parameters."""
    torch.manual_seed(0)
    model = OnePiece(tiny_config(data, **parts), data.catalogue).train()
    full = model_is_full(parts)
    config = ContextConfig(max_history=12, requests_per_row=1 if full else 3, block_by="behavior")
    batch, _ = next(TrainingBatches(data, config).epoch(0))
    torch.manual_seed(0)
    out = model(batch)
    # Blocks are read as they are: behind a norm their scale would not show.
    queries = (out.prefix, *out.steps, *out.latents, out.items.vectors)
    (out.prefix.square().sum() + sum(q.square().sum() for q in queries[1:])).backward()
    named = [(n, tuple(p.shape), p.grad is None) for n, p in model.named_parameters()]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return digest(named, *queries, *gradients)


def model_is_full(parts: dict[str, Any]) -> bool:
    return "attention" in parts.get("encoder", {})


def look_at_encoder(data: PreparedDataset, tmp_path: Path, **values: Any) -> str:
    if "attention" in values:  # both kinds over the only decoder that either can have
        return look_at_model(data, tmp_path, encoder=values, reasoner={"decoder": "shared"})
    return look_at_model(data, tmp_path, encoder=values)


def look_at_reasoner(data: PreparedDataset, tmp_path: Path, **values: Any) -> str:
    return look_at_model(data, tmp_path, reasoner=values)


def look_at_ranker(data: PreparedDataset, tmp_path: Path, **values: Any) -> str:
    """Logits and gradients of the ranking of three candidates, positions given."""
    torch.manual_seed(0)
    config = tiny_config(data, ranker={"decoder": "own", **values})
    # Three tasks, and nothing that starts at zero and hides what stands behind it.
    config = replace(config, data=replace(config.data, num_ranking_tasks=3))
    model = OnePiece(config, data.catalogue)
    randomise(model)
    batch, _ = next(TrainingBatches(data, ContextConfig(requests_per_row=2)).epoch(0))
    item = torch.arange(2, 5).expand(*batch.requests.cut.shape, 1, 3)
    found = model.rank(model(batch), CandidateSet(item, item - 1))
    found.logits.square().sum().backward()
    named = [(n, p.grad is None or not p.grad.any()) for n, p in model.named_parameters()]
    return digest(found.logits, *found.early, named)


def look_at_candidates(data: PreparedDataset, tmp_path: Path, **values: Any) -> str:
    torch.manual_seed(0)
    candidates, level = draw_candidates(
        CandidateConfig(**values),
        query=torch.randn(4, 3, 5),
        vectors=torch.randn(42, 5),
        task_item=torch.randint(2, 42, (4, 3, 1)),
        num_trained=40,
        coarse=torch.tensor([0, 0, *([2, 3, 4, 5] * 10)]),
        groups=2,
        group_size=6,
    )
    return digest(candidates.item, level)


def look_at_context(data: PreparedDataset, tmp_path: Path, **values: Any) -> str:
    config = ContextConfig(**values)
    if "neighbours" in config.anchors and not (data.path / "anchors").exists():
        names = AnchorsConfig(names=("neighbours",), num_bins=4)
        fit_anchors(data.path, data.manifest, names, coarse="auto")
    anchors = AnchorReader.open(data.path, config) if config.anchors else None
    batch, labels = next(TrainingBatches(data, config, anchors=anchors).epoch(0))
    asked = next(
        evaluation_batches(data, config, part="test", batch_size=99, anchors=anchors)
    ).context
    read = [b.requests.anchor_item for b in (batch, asked)]
    return digest(
        *(read if anchors else ()),
        *(value for pair in sorted(batch.requests.situation.items()) for value in pair),
        build_objective(ObjectiveConfig(), data, config).groups,
        *(t for h in (batch.history, asked.history) for t in (h.item, h.block, h.lengths)),
        *(batch.requests.cut, labels.next_item, labels.task_item, asked.requests.cut),
    )


def look_at_objective(data: PreparedDataset, tmp_path: Path, **values: Any) -> str:
    torch.manual_seed(0)
    ranks = "rank_weight" in values
    ranker = {"decoder": "own"} if ranks else None
    model = OnePiece(tiny_config(data, ranker=ranker), data.catalogue)
    drawn = ContextConfig(candidates="built" if ranks else "none", group_size=6)
    objective = build_objective(ObjectiveConfig(**values), data, drawn)
    batch, labels = next(TrainingBatches(data, ContextConfig(requests_per_row=3)).epoch(0))
    total, terms = objective(model, batch, labels)
    total.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return digest(sorted(terms), total, *terms.values(), *gradients)


class Watched:
    """An objective that writes down how products are computed."""

    def __init__(self, inner: Any, seen: list[Any]) -> None:
        self.inner, self.seen = inner, seen

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.seen.append((softmax._rounds.get(), kwargs))
        return self.inner(*args, **kwargs)


def look_at_run(data: PreparedDataset, tmp_path: Path, **values: Any) -> str:
    """Weights, saved weights, metrics, checkpoints and result of a short run."""
    folder = tmp_path / digest(values)
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    config = replace(BASE_RUN, **values)
    torch.manual_seed(0)
    encoder = {"dropout": 0.1, "init_std": 0.1, "relative_bias": True}
    model = OnePiece(tiny_config(data, encoder=encoder), data.catalogue)
    seen: list[Any] = []
    scores = iter([0.3, 0.2, 0.1, 0.4, 0.5, 0.6])

    def validate(candidate: OnePiece) -> dict[str, float]:
        score = next(scores)
        seen.append(digest(*candidate.parameters()))
        return {"ndcg@10": score, "recall@10": -score}

    def save_best(candidate: OnePiece) -> None:
        seen.append(digest(*candidate.parameters()))

    batches = TrainingBatches(
        data, ContextConfig(requests_per_row=2), rows=config.batch_rows, seed=config.seed
    )
    saves: list[int] = []
    save, set_threads = loop.save_checkpoint, torch.set_num_threads
    loop.save_checkpoint = lambda *a, **k: saves.append(a[-1].step) or save(*a, **k)
    torch.set_num_threads = seen.append  # two threads on a busy machine take minutes
    try:
        objective: Any = Watched(build_objective(config.objective, data), seen)
        result = train(
            model, batches, objective, config, folder=folder, validate=validate,
            save_best=save_best,
        )  # fmt: skip
    finally:
        loop.save_checkpoint, torch.set_num_threads = save, set_threads
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    facts = (result.best_metric, result.best_epoch, result.epochs, result.steps)
    return digest(kept, seen, saves, facts, *model.parameters())


def look_at_optimizer(data: PreparedDataset, tmp_path: Path, **values: Any) -> str:
    base = {"warmup_steps": 1, "lr": 0.01}
    return look_at_run(data, tmp_path, epochs=1, optimizer=OptimizerConfig(**{**base, **values}))


BASE_RUN = TrainConfig(
    epochs=3,
    batch_rows=4,
    patience=0,
    optimizer=OptimizerConfig(lr=0.01, warmup_steps=2),
    objective=ObjectiveConfig(),
)

# Config → how to look at it, and for each field a value other than the default, with what else the
# field needs in order to be read at all.
CASES: dict[type, tuple[Look, dict[str, tuple[Any, dict[str, Any]]]]] = {
    EncoderConfig: (
        look_at_encoder,
        {
            "width": (12, {}),
            "num_layers": (1, {}),
            "num_heads": (4, {}),
            "hidden": (40, {}),
            "dropout": (0.3, {}),
            "max_history": (20, {}),
            "attention": ("full", {"attention": "causal"}),
            "positions": ("learned", {}),
            "relative_bias": (True, {}),
            "use_behavior": (False, {}),
            "use_gap": (False, {}),
            "max_blocks": (2, {}),
            "feature_width": (6, {}),
            "id_dropout": (0.5, {}),
            "similarity": ("cosine", {}),
            "temperature": (0.5, {"similarity": "cosine"}),
            "init_std": (0.1, {}),
        },
    ),
    ReasonerConfig: (
        look_at_reasoner,
        {
            "num_steps": (1, {}),
            "decoder": ("shared", {}),
            "num_layers": (2, {}),
            "step_embedding": (False, {}),
            "isolated": (True, {}),
            "zero_init": (True, {}),
            "norm_rescale": (True, {}),
            "step_rank": (2, {}),
            "gated": (True, {}),
        },
    ),
    ContextConfig: (
        look_at_context,
        {
            "max_history": (2, {}),
            "block_by": ("behavior", {}),
            "session_gap_s": (100, {"block_by": "session"}),
            "requests_per_row": (2, {}),
            "anchors": (("own",), {"max_history": 2}),
            "anchor_length": (3, {"max_history": 2, "anchors": ("own",)}),
            "anchor_recent": (1, {"anchors": ("neighbours",)}),
            "situation": (("month",), {}),
            "candidates": ("built", {}),
            "group_size": (5, {"candidates": "built"}),
            "groups": (2, {"candidates": "built"}),
        },
    ),
    RankerConfig: (
        look_at_ranker,
        {
            "decoder": ("shared", {}),
            "num_steps": (4, {}),
            "num_layers": (2, {}),
            "step_embedding": (False, {}),
            "progressive": (False, {}),
            "candidates_visible": (False, {}),
            "read_steps": (False, {}),
            "read_score": (False, {}),
            "use_position": (True, {}),
            "isolated": (False, {}),
        },
    ),
    CandidateConfig: (
        look_at_candidates,
        {"hard_share": (0.25, {}), "category_share": (0.5, {}), "hard_top": (7, {})},
    ),
    ObjectiveConfig: (
        look_at_objective,
        {
            "prefix_loss": ("bce", {}),
            "step_losses": (("u2i",), {}),
            "num_negatives": (7, {"prefix_loss": "bce"}),
            "negatives": ("popularity", {"prefix_loss": "sampled_softmax"}),
            "prefix_weight": (0.5, {}),
            "step_weight": (0.5, {}),
            "targets": ("coarse_to_fine", {}),
            "coarse_weight": (0.5, {"targets": "coarse_to_fine"}),
            "temperature": (0.5, {}),
            "contrast_temperature": (0.5, {"step_losses": ("i2u",)}),
            "teacher_weight": (0.5, {}),
            "rank_weight": (0.5, {"rank_weight": 1.0}),
            "set_weight": (0.5, {"rank_weight": 1.0}),
            "candidates": (CandidateConfig(hard_share=0.9, category_share=0), {"rank_weight": 1.0}),
        },
    ),
    OptimizerConfig: (
        look_at_optimizer,
        {
            "lr": (0.02, {}),
            "weight_decay": (0.5, {}),
            "warmup_steps": (3, {}),
            "schedule": ("constant", {}),
            "final_lr_fraction": (0.9, {}),
            "clip_norm": (0.001, {}),
            "beta2": (0.5, {}),
        },
    ),
    TrainConfig: (
        look_at_run,
        {
            "epochs": (2, {}),
            "batch_rows": (3, {}),
            "seed": (1, {}),
            "precision": ("bf16", {}),
            "validate_every": (2, {}),
            "patience": (1, {}),
            "metric": ("recall@10", {}),
            "reason_from_epoch": (1, {}),
            "checkpoint_every_s": (0.0, {}),
            "ema_decay": (0.5, {}),
            "threads": (2, {}),
            "optimizer": (OptimizerConfig(lr=0.5), {}),
            "objective": (ObjectiveConfig(prefix_weight=0.5), {}),
        },
    ),
}
PAIRS = [(kind, name) for kind, (_, changes) in CASES.items() for name in changes]


@pytest.mark.parametrize(("kind", "name"), PAIRS, ids=lambda x: getattr(x, "__name__", x))
def test_every_config_field_changes_something(
    kind: type, name: str, rich: PreparedDataset, tmp_path: Path
) -> None:
    look, changes = CASES[kind]
    value, needed = changes[name]
    assert look(rich, tmp_path, **needed) != look(rich, tmp_path, **{**needed, name: value})


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_the_same_config_looks_the_same_twice_and_no_field_is_forgotten(
    kind: type, rich: PreparedDataset, tmp_path: Path
) -> None:
    look, changes = CASES[kind]
    assert look(rich, tmp_path) == look(rich, tmp_path)
    assert set(changes) == {field.name for field in fields(kind)}


def test_a_log_without_times_reads_no_clock(tmp_path: Path, rich: PreparedDataset) -> None:
    """`use_gap` and the situation are switched off by the data, whatever the config says."""
    data = write_dataset(
        tmp_path, [User(item=[2, 3, 4, 5], train_end=4)] * 2, num_trained=4, has_time=False
    )
    model = OnePiece(tiny_config(data, encoder={"relative_bias": True}), data.catalogue).eval()
    config = ContextConfig(requests_per_row=2)
    batch, _ = next(TrainingBatches(data, config).epoch(0))
    later = replace(
        batch,
        history=replace(batch.history, timestamp=batch.history.timestamp * 7),
        requests=replace(batch.requests, timestamp=batch.requests.timestamp * 9),
    )
    for one, other in zip(model(batch).steps, model(later).steps, strict=True):
        assert torch.equal(one, other)
    assert not batch.history.gap.any()
    assert not batch.requests.gap.any()
    assert not any(value.any() for value in batch.requests.situation.values())
