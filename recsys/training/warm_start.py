"""Start from yesterday's model on today's data, whose vocabularies may have grown.

Rows of a table belong to external values, and internal ids differ between data sets: every row that
both know is copied by its external value. A new item's id row starts as the unknown row, so that it
first scores by its features; a new value of a feature likewise.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from recsys.config import read_json
from recsys.data.dataset import Catalogue, PreparedDataset
from recsys.model.onepiece import OnePiece
from recsys.model.save import load_pretrained
from recsys.nn.embedding import table_name
from recsys.schema import Manifest
from recsys.training.checkpoint import read_moments
from recsys.types import FIRST_BEHAVIOR, FIRST_ID, UNKNOWN

logger = logging.getLogger(__name__)


def row_sources(old: list[str], new: list[str], first: int, fallback: int) -> Tensor:
    """Where each row of the new table comes from.

    Args:
        old: External values of the old table's rows from ``first`` on.
        new: Of the new table's.
        first: Reserved rows, the same in both.
        fallback: Old row that a new value starts from.

    Returns:
        Old row of every new row, (first + len(new),) int64.

    Example:
        >>> row_sources(["a", "b"], ["b", "c"], 2, 1).tolist()
        [0, 1, 3, 1]
    """
    known = {value: first + i for i, value in enumerate(old)}
    rows = [*range(first), *(known.get(value, fallback) for value in new)]
    return torch.tensor(rows, dtype=torch.int64)


@dataclass(frozen=True, slots=True)
class WarmStart:
    """What a new run took over."""

    known: int
    """Trained items of both."""
    new: int
    gone: int
    moments: dict[str, Tensor]
    """The optimizer's state, rows moved like the tables'; empty without a checkpoint."""


def warm_start(model: OnePiece, dataset: PreparedDataset, folder: Path) -> WarmStart:
    """Copy everything an older model knows into a new one, in place.

    Args:
        model: Freshly built for ``dataset``; layers must be of the old model's sizes.
        dataset: Today's data.
        folder: Yesterday's model folder; the optimizer's state is read from ``checkpoints`` beside
            it, where there is one.

    Returns:
        How the items overlap, and the optimizer's state for ``train``.

    Raises:
        ValueError: If a parameter that is no table differs in shape; it is named.
    """
    old_model, old_catalogue, old_manifest, _ = load_pretrained(folder)
    old_items, new_items = _trained(old_catalogue), _trained(dataset.catalogue)
    tables = _table_rows(old_manifest, read_json(folder / "vocabularies.json"), dataset)
    tables[_ID_TABLE] = row_sources(old_items, new_items, FIRST_ID, UNKNOWN)
    old_state, state = old_model.state_dict(), model.state_dict()
    for name, value in state.items():
        if name.startswith("latent_norm.") and name not in old_state:
            # A reasoner on a prefix-only model: its first answers are read as the prefix head's.
            state[name] = old_state[name.replace("latent_norm", "answer_norm")]
        elif name not in old_state:
            logger.warning("warm start: %s is new and starts fresh", name)
        elif name in tables:
            state[name] = old_state[name][tables[name]]
        elif old_state[name].shape == value.shape:
            state[name] = old_state[name]
        elif name.startswith("coarse_head."):
            logger.warning("warm start: the coarse codes differ, their head starts fresh")
        else:
            raise ValueError(
                f"{name} is {tuple(old_state[name].shape)} in {folder} and {tuple(value.shape)} "
                "in this run: a warm start needs the same sizes and features."
            )
    model.load_state_dict(state)
    moments = {}
    for key, value in read_moments(folder.parent / "checkpoints").items():
        name = key.rpartition(".")[0]
        if name in tables and value.dim():
            rows = tables[name]
            # A new row has the fallback row's weights, but no history of its own.
            is_new = rows.bincount(minlength=len(value))[rows] > 1
            moments[key] = value[rows].masked_fill(is_new[:, None], 0.0)
        elif name in state and (not value.dim() or value.shape == state[name].shape):
            moments[key] = value
    both = len(set(old_items) & set(new_items))
    counts = (both, len(new_items) - both, len(old_items) - both)
    logger.info("warm start from %s: %d items known, %d new, %d gone", folder.name, *counts)
    return WarmStart(*counts, moments)


_ID_TABLE = "item_encoder.encoder.id_table.embeddings.id.weight"


def _trained(catalogue: Catalogue) -> list[str]:
    """External ids of the items with an id row of their own, in row order."""
    ids: list[str] = catalogue.item_ids.to_pylist()
    return ids[FIRST_ID : FIRST_ID + catalogue.num_trained]


def _table_rows(
    old: Manifest, old_words: dict[str, list[str]], dataset: PreparedDataset
) -> dict[str, Tensor]:
    """Where the rows of every table but the item ids' come from, by parameter name."""
    behaviors = list(old.behaviors), list(dataset.manifest.behaviors)
    tables = {
        "history_tokens.tables.behavior.weight": row_sources(*behaviors, FIRST_BEHAVIOR, UNKNOWN)
    }
    owners = {
        "item": "item_encoder.encoder",
        "user": "request_tokens.user",
        "event": "history_tokens.features",
    }
    for key, words in dataset.vocabularies.items():
        owner, _, name = key.partition(".")
        if owner in owners and key in old_words:
            source = row_sources(old_words[key], words, FIRST_ID, UNKNOWN)
            table = f"{table_name(name)}.weight"
            tables[f"{owners[owner]}.tables.embeddings.{table}"] = source
            tables[f"{owners[owner]}.bags.embedding_bags.{table}"] = source
    return tables
