"""Saved models and baselines on a prepared data set: from folders to the per-user table."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recsys.batch import EvaluationBatch
from recsys.config import from_dict
from recsys.context.config import ContextConfig
from recsys.context.loader import evaluation_batches
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.baselines import BASELINES, BaselineName, fit_baselines
from recsys.evaluation.protocol import Scorer
from recsys.evaluation.run import ITEM_BLOCK, evaluate
from recsys.evaluation.scorers import ModelScorer
from recsys.evaluation.table import UserTable
from recsys.model.save import load_pretrained

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, what is done and the total."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """How models are tested."""

    part: Literal["validation", "test"] = "test"
    filter_seen: bool = True
    """Take the items of a user's history out; a target among them then counts as a miss."""
    candidates: Literal["trained", "all"] = "trained"
    """What competes: items with a training event, or the whole catalogue."""
    baselines: tuple[BaselineName, ...] = BASELINES
    """What every model must beat."""
    recent_days: float = 7.0
    """Window of the baseline popular_recent, days before the end of training."""
    k: tuple[int, ...] = (1, 5, 10, 20, 50, 100)
    """Lengths of the list."""
    list_k: int = 10
    """Length of the lists behind coverage, novelty and diversity; 0 = none."""
    max_users: int | None = None
    """Test about so many users, spread evenly; all by default."""
    batch_size: int = 256
    """Users at once."""
    item_block: int = ITEM_BLOCK
    """Items at once."""
    device: str = "cpu"


def evaluate_models(
    models: Sequence[Path],
    dataset: PreparedDataset,
    config: EvaluationConfig,
    *,
    progress: Progress | None = None,
) -> UserTable:
    """Test saved models and baselines on the same requests.

    Args:
        models: Folders that ``save_pretrained`` wrote; each is read with its own context.
        dataset: The prepared data set that the models were trained on.
        config: How.
        progress: Told of the users done.

    Returns:
        Ranks of every request under every head; models come first.

    Raises:
        ValueError: If there is nothing to test, a model is of another catalogue, or what
            ``evaluate`` raises.
    """
    if not models and not config.baselines:
        raise ValueError("There is nothing to evaluate: name a model or a baseline.")
    groups: dict[ContextConfig, list[Scorer]] = {}
    for folder, name in zip(models, model_names(models), strict=True):
        context, scorer = load_scorer(folder, dataset, name=name, device=config.device)
        groups.setdefault(context, []).append(scorer)
    fitted = fit_baselines(config.baselines, dataset, recent_days=config.recent_days)
    if fitted:
        last = list(groups)[-1] if groups else ContextConfig()
        groups.setdefault(last, []).extend(fitted)
    table: UserTable | None = None
    for context, scorers in groups.items():
        batches = evaluation_batches(
            dataset,
            context,
            part=config.part,
            batch_size=config.batch_size,
            max_users=config.max_users,
        )
        total = min(config.max_users or dataset.manifest.num_users, dataset.manifest.num_users)
        found = evaluate(
            scorers,
            batches if progress is None else _told(batches, progress, scorers[0].name, total),
            dataset.catalogue,
            k=config.k,
            filter_seen=config.filter_seen,
            candidates=config.candidates,
            item_block=config.item_block,
            list_k=config.list_k,
        )
        table = found if table is None else table.merge(found)
    assert table is not None
    return table


def load_scorer(
    folder: Path, dataset: PreparedDataset, *, name: str, device: str = "cpu"
) -> tuple[ContextConfig, ModelScorer]:
    """Load a model for testing.

    Args:
        folder: What ``save_pretrained`` wrote.
        dataset: The prepared data set to test on.
        name: What reports call the model.
        device: Where it runs.

    Returns:
        How its requests are assembled, and the scorer.

    Raises:
        ValueError: If the model's catalogue is not the data set's.
    """
    model, _, manifest, context = load_pretrained(folder)
    key = "items.arrow"
    if manifest.hashes.get(key) != dataset.manifest.hashes.get(key):
        raise ValueError(
            f"The model {folder} was trained on another catalogue than {dataset.path}: their item "
            "ids mean different items. Evaluate it on the data set it was trained on."
        )
    model.to(device)
    where = f"{folder}/config.json"
    return (
        from_dict(ContextConfig, context, where=where),
        ModelScorer(model, name=name, device=device),
    )


def model_names(folders: Sequence[Path]) -> list[str]:
    """Short names that tell folders apart.

    Args:
        folders: Folders of models.

    Returns:
        A name each: the last part of the path in which they differ.

    Raises:
        ValueError: If a folder is named twice.

    Example:
        >>> model_names([Path("runs/a/model"), Path("runs/b/model")])
        ['a', 'b']
    """
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) != len(resolved):
        raise ValueError(f"Each model can be named once, not {[str(f) for f in folders]}.")
    depth = 1
    while True:
        names = [f.parts[-depth] if depth < len(f.parts) else f.as_posix() for f in resolved]
        if len(set(names)) == len(names):
            return names
        if all(depth >= len(f.parts) for f in resolved):
            return [f"model{i + 1}" for i in range(len(resolved))]
        depth += 1


def _told(
    batches: Iterator[EvaluationBatch], progress: Progress, stage: str, total: int
) -> Iterator[EvaluationBatch]:
    done = 0
    for batch in batches:
        yield batch
        done += len(batch.target)
        progress(stage, done, max(total, done))
    progress(stage, done, done)
