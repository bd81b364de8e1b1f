"""Saved models and baselines on a prepared data set: from folders to the per-user table."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recsys.batch import EvaluationBatch
from recsys.config import from_dict, read_json
from recsys.context.anchors import AnchorReader
from recsys.context.config import ContextConfig
from recsys.context.loader import evaluation_batches
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.baselines import BASELINES, BaselineName, fit_baselines
from recsys.evaluation.protocol import Scorer
from recsys.evaluation.run import ITEM_BLOCK, evaluate
from recsys.evaluation.scorers import ModelScorer
from recsys.evaluation.table import UserTable
from recsys.evaluation.translate import Translation, same_codes
from recsys.model.onepiece import OnePiece
from recsys.model.save import load_pretrained
from recsys.types import FIRST_ID

_LOG = logging.getLogger(__name__)

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
        dataset: The prepared data set to test on: the one the models were trained on, or a later
            one, whose new items an older model never recommends.
        config: How.
        progress: Told of the users done.

    Returns:
        Ranks of every request under every head; models come first.

    Raises:
        ValueError: If there is nothing to test, a model does not fit the data, or what
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
            anchors=AnchorReader.open(dataset.path, context) if context.anchors else None,
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
    for scorers in groups.values():
        _tell_of_unknown_targets(scorers, table)
    return table


def _tell_of_unknown_targets(scorers: Sequence[Scorer], table: UserTable) -> None:
    """Misses that no model could help, of models older than the data."""
    for scorer in scorers:
        if isinstance(scorer, ModelScorer) and scorer.is_unknown is not None:
            missed = int((scorer.is_unknown[table.target] & table.target_known).sum())
            _LOG.warning(
                "%s does not know %d of the %d items that are asked for: misses.",
                scorer.name,
                missed,
                table.num_requests,
            )


def load_scorer(
    folder: Path, dataset: PreparedDataset, *, name: str, device: str = "cpu"
) -> tuple[ContextConfig, ModelScorer]:
    """Load a model for testing, on its own data set or on a later one.

    Args:
        folder: What ``save_pretrained`` wrote.
        dataset: The prepared data set to test on.
        name: What reports call the model.
        device: Where it runs.

    Returns:
        How its requests are assembled, and the scorer.

    Raises:
        ValueError: If the model knows nothing of the data set, or reads what it lacks.
    """
    model, catalogue, manifest, context = load_pretrained(folder)
    translation = None
    words = read_json(folder / "vocabularies.json")
    if not same_codes(dataset, catalogue, manifest, words):
        translation = Translation.between(dataset, catalogue, manifest, words)
        trained = dataset.catalogue.num_trained
        known = trained - int(translation.is_unknown[FIRST_ID : FIRST_ID + trained].sum())
        _LOG.warning(
            "%s was trained on other data than %s and knows %d of its %d trained items; it never "
            "recommends the others.",
            folder,
            dataset.path,
            known,
            trained,
        )
        learnt, held_back = manifest.validation_time, dataset.manifest.validation_time
        if learnt is not None and held_back is not None and learnt > held_back:
            _LOG.warning(
                "%s was trained on events up to %d, and %s holds those back from %d on: the model "
                "may have seen the answers it is asked for.",
                folder,
                learnt,
                dataset.path,
                held_back,
            )
    scorer = ModelScorer(model.to(device), name=name, device=device, translation=translation)
    return from_dict(ContextConfig, context, where=f"{folder}/config.json"), scorer


def load_model(
    folder: Path, dataset: PreparedDataset, *, device: str = "cpu"
) -> tuple[ContextConfig, OnePiece]:
    """Load a model and see that it is of a data set.

    Args:
        folder: What ``save_pretrained`` wrote.
        dataset: The prepared data set to test on.
        device: Where it runs.

    Returns:
        How its requests are assembled, and the model in evaluation mode.

    Raises:
        ValueError: If items, behaviors or words have other codes in the data set.
    """
    model, catalogue, manifest, context = load_pretrained(folder)
    if not same_codes(dataset, catalogue, manifest, read_json(folder / "vocabularies.json")):
        raise ValueError(
            f"The model {folder} was trained on another catalogue than {dataset.path}: their item "
            "ids mean different items. Evaluate it on the data set it was trained on."
        )
    where = f"{folder}/config.json"
    return from_dict(ContextConfig, context, where=where), model.to(device)


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
