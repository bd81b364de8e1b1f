"""Start from yesterday's model on today's data, whose vocabularies may have grown.

Rows of a table belong to external values, and internal ids differ between data sets: every row that
both know is copied by its external value. A new item's id row starts as the unknown row, so that it
first scores by its features; a new value of a feature likewise.
"""

import logging
from pathlib import Path

import torch
from torch import Tensor

from recsys.config import read_json
from recsys.data.dataset import PreparedDataset
from recsys.model.onepiece import OnePiece
from recsys.model.save import load_pretrained
from recsys.nn.embedding import table_name
from recsys.types import BOUNDARY, FIRST_BEHAVIOR, FIRST_ID, UNKNOWN

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


def warm_start(model: OnePiece, dataset: PreparedDataset, folder: Path) -> dict[str, int]:
    """Copy everything an older model knows into a new one, in place.

    Args:
        model: Freshly built for ``dataset``; layers must be of the old model's sizes.
        dataset: Today's data.
        folder: Yesterday's model folder.

    Returns:
        Items ``known`` to both, ``new`` and ``gone``.

    Raises:
        ValueError: If a parameter that is no table differs in shape; it is named.
    """
    old_model, old_catalogue, old_manifest, _ = load_pretrained(folder)
    manifest = dataset.manifest
    old_words = read_json(folder / "vocabularies.json")
    old_items = old_catalogue.item_ids.to_pylist()[FIRST_ID : FIRST_ID + old_catalogue.num_trained]
    new_items = dataset.catalogue.item_ids.to_pylist()
    new_items = new_items[FIRST_ID : FIRST_ID + dataset.catalogue.num_trained]
    tables = {
        "item_encoder.encoder.id_table.embeddings.id.weight": row_sources(
            old_items, new_items, FIRST_ID, UNKNOWN
        ),
        "history_tokens.tables.behavior.weight": row_sources(
            list(old_manifest.behaviors), list(manifest.behaviors), FIRST_BEHAVIOR, BOUNDARY - 1
        ),
    }
    for owner, prefix in (
        ("item", "item_encoder.encoder"),
        ("user", "request_tokens.user"),
        ("event", "history_tokens.features"),
    ):
        for key, words in dataset.vocabularies.items():
            kind, _, name = key.partition(".")
            if kind == owner and key in old_words:
                source = row_sources(old_words[key], words, FIRST_ID, UNKNOWN)
                table = table_name(name)
                tables[f"{prefix}.tables.embeddings.{table}.weight"] = source
                tables[f"{prefix}.bags.embedding_bags.{table}.weight"] = source
    old_state, state = old_model.state_dict(), model.state_dict()
    for name, value in state.items():
        if name not in old_state:
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
    both = set(old_items) & set(new_items)
    counts = {
        "known": len(both),
        "new": len(new_items) - len(both),
        "gone": len(old_items) - len(both),
    }
    logger.info("warm start from %s: %s", folder.name, counts)
    return counts
