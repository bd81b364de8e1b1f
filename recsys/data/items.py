"""The catalogue of a prepared data set: who gets which internal id, features, coarse codes."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys.data.features import Codes, StaticTable, feature_kind, write_table
from recsys.data.histories import load_sorted
from recsys.schema import ColumnSpec, Feature
from recsys.types import FIRST_ID, UNKNOWN

_LOG = logging.getLogger(__name__)

Sample = Callable[[int], tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
Coarse = Literal["auto", "category", "text", "cooccurrence", "none"]
COARSE = "coarse"
"""Names the categories behind the coarse codes among the vocabularies; clusters have no names."""
_COARSE_WIDTH = 32
"""Of the co-occurrence vectors that are clustered."""
CATEGORY_NAMES = ("category", "category_id", "categories")
"""Item features that coarse codes are read from, where they are declared; the first one counts."""


class ItemOptions(Protocol):
    """The part of ``PrepareConfig`` that the catalogue depends on."""

    @property
    def columns(self) -> ColumnSpec: ...  # noqa: D102
    @property
    def categorical_features(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def text_features(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def text_width(self) -> int: ...  # noqa: D102
    @property
    def text_model(self) -> str | None: ...  # noqa: D102
    @property
    def coarse(self) -> Coarse: ...  # noqa: D102
    @property
    def num_coarse(self) -> int: ...  # noqa: D102
    @property
    def coarse_events(self) -> int: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Items:
    """Internal ids of items: trained ones by (count, id), then the table's others by id."""

    names: list[str]
    """External keys from internal id 2 on."""
    counts: npt.NDArray[np.int64]
    """Training events of each of ``names``."""
    num_trained: int
    lookup: Codes
    """Internal id of each provisional code; ``UNKNOWN`` where neither trained nor in the table."""

    @property
    def size(self) -> int:
        """N, the two reserved rows included."""
        return len(self.names) + FIRST_ID

    @staticmethod
    def fit(keys: list[str], counts: npt.NDArray[np.int64], table: StaticTable | None) -> "Items":
        """Give ids.

        Args:
            keys: External key of each provisional code.
            counts: Training events of each, (len(keys),).
            table: The table of items, if there is one.

        Returns:
            The catalogue's ids.
        """
        trained = np.flatnonzero(counts)
        order = sorted(trained.tolist(), key=lambda i: (-counts[i], keys[i]))
        names = [keys[i] for i in order]
        lookup = np.full(len(keys), UNKNOWN, np.int32)
        lookup[order] = np.arange(len(order), dtype=np.int32) + FIRST_ID
        if table is not None:
            known = set(names)
            others = sorted(k for k in table.row if k not in known)
            ids = {k: i + FIRST_ID + len(names) for i, k in enumerate(others)}
            for code in np.flatnonzero(counts == 0).tolist():
                lookup[code] = ids.get(keys[code], UNKNOWN)
            names += others
        all_counts = np.zeros(len(names), np.int64)
        all_counts[: len(order)] = counts[order]
        return Items(names, all_counts, len(order), lookup)


def make_items(
    folder: Path,
    items: Items,
    table: StaticTable | None,
    options: ItemOptions,
    vocabularies: dict[str, list[str]],
    *,
    sample: Sample,
) -> tuple[tuple[Feature, ...], int]:
    """Write ``items.arrow`` and the text vectors beside it.

    Args:
        folder: The data set.
        items: Who has which id.
        table: The table of items, if there is one.
        options: Declared features and how to make coarse codes.
        vocabularies: Gets the values of each item feature, and the names of coarse categories.
        sample: Returns at most so many training events, as ``training_sample``.

    Returns:
        The item features and the number of coarse codes.
    """
    rows = np.full(items.size, -1, np.int64)
    features: list[Feature] = []
    columns: dict[str, pa.Array] = {
        "item_id": pa.array(["", "", *items.names], pa.string()),
        "train_count": pa.array(np.concatenate([[0, 0], items.counts]).astype(np.int64)),
    }
    extra: dict[str, pa.Array] = {}
    texts: dict[str, npt.NDArray[np.float32]] = {}
    if table is not None:
        rows[FIRST_ID:] = table.rows(items.names)
        trained = np.zeros(len(table), bool)
        seen = rows[FIRST_ID : FIRST_ID + items.num_trained]
        trained[seen[seen >= 0]] = True
        for name in options.columns.item_features:
            kind = feature_kind(
                name,
                table.columns[name].type,
                categorical=options.categorical_features,
                text=options.text_features,
            )
            if kind == "text":
                texts[name] = _text_vectors(table, name, rows, options)
                np.save(folder / f"items.{name}.npy", texts[name], allow_pickle=False)
                features.append(Feature(name=name, kind=kind, width=texts[name].shape[1]))
                continue
            encoded, values = table.fit(name, kind, trained)
            features.append(encoded.feature)
            extra[name] = encoded.gather(rows)
            if kind != "numeric":
                vocabularies[f"item.{name}"] = values
    coarse, num_coarse = _coarse(items, table, rows, texts, options, vocabularies, sample)
    columns["coarse"] = pa.array(coarse)
    write_table(folder / "items.arrow", pa.table(columns | extra))
    return tuple(features), num_coarse


def _text_vectors(
    table: StaticTable, name: str, rows: npt.NDArray[np.int64], options: ItemOptions
) -> npt.NDArray[np.float32]:
    from recsys.data.text import encode_texts  # slow to import

    texts = [*table.texts(name), ""]
    vectors = encode_texts(
        [texts[r] for r in rows],
        model=options.text_model,
        width=options.text_width,
        seed=options.seed,
    )
    vectors[:FIRST_ID] = 0
    return vectors


def _coarse(
    items: Items,
    table: StaticTable | None,
    rows: npt.NDArray[np.int64],
    texts: dict[str, npt.NDArray[np.float32]],
    options: ItemOptions,
    vocabularies: dict[str, list[str]],
    sample: Sample,
) -> tuple[npt.NDArray[np.int32], int]:
    """Coarse code of each item, 0 for the reserved rows, ``UNKNOWN`` where nothing is known."""
    coarse = np.zeros(items.size, np.int32)
    coarse[FIRST_ID:] = UNKNOWN
    columns = table.columns if table is not None else {}
    declared = [n for n in CATEGORY_NAMES if n in columns and n not in texts]
    how = options.coarse
    if how == "auto":
        how = "category" if declared else "text" if texts else "cooccurrence"
    if how == "none":
        return coarse, FIRST_ID
    from recsys.data.coarse import coarse_codes, codes_from_categories

    if how == "category":
        if not declared or table is None:
            raise ValueError(
                f"coarse 'category' needs an item feature named one of {list(CATEGORY_NAMES)}; "
                f"declared are {list(options.columns.item_features)}."
            )
        values = [*table.values(declared[0]), None]
        codes, vocabularies[COARSE] = codes_from_categories([values[r] for r in rows[FIRST_ID:]])
        where = np.arange(FIRST_ID, items.size)
    else:
        where, vectors = _vectors(items, texts, how, options, sample)
        count = min(options.num_coarse or round(len(where) ** 0.5), len(where))
        codes = coarse_codes(vectors, num_clusters=max(1, count), seed=options.seed)
    coarse[where] = np.where(codes >= 0, codes + FIRST_ID, UNKNOWN)
    return coarse, int(coarse.max(initial=UNKNOWN)) + 1


def _vectors(
    items: Items,
    texts: dict[str, npt.NDArray[np.float32]],
    how: str,
    options: ItemOptions,
    sample: Sample,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Items that have a vector to cluster, and the vectors."""
    if how == "text":
        if not texts:
            raise ValueError("coarse 'text' needs text_features; none is declared.")
        found = np.concatenate(list(texts.values()), axis=1)
    else:
        from recsys.data.cooccurrence import cooccurrence_vectors

        user, item = sample(options.coarse_events)
        found = cooccurrence_vectors(
            user, item, num_items=items.size, width=_COARSE_WIDTH, seed=options.seed
        )
    where = np.flatnonzero(np.abs(found).sum(1) > 0)
    where = where[where >= FIRST_ID]
    return where, found[where]


def training_sample(
    folder: Path, buckets: int, limit: int, *, skip: int | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Training events of whole users, up to a limit, so that memory does not grow with the log.

    Args:
        folder: The data set.
        buckets: Files of histories.
        limit: Most events to return.
        skip: Behavior code of events to leave out.

    Returns:
        User ordinals and internal item ids, (events,), grouped by user, chronological.
    """
    users, items, first, left = [], [], 0, limit
    for index in range(buckets):
        bucket, (train_end, _) = load_sorted(folder / "histories" / f"{index:05d}.arrow")
        ends = np.cumsum(train_end.astype(np.int64))
        fits = int(np.searchsorted(ends, left, side="right"))
        lengths = train_end[:fits].astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(starts[-1]) + np.repeat(bucket.offsets[:fits] - starts[:-1], lengths)
        user = np.repeat(np.arange(first, first + fits), lengths)
        if skip is not None:
            done = bucket.events["behavior"][places] != skip
            user, places = user[done], places[done]
        users.append(user)
        items.append(bucket.events["item"][places].astype(np.int64))
        first, left = first + fits, left - int(starts[-1])
        if fits < len(train_end):
            _LOG.info("Co-occurrence is counted on %d of the training events.", limit - left)
            break
    return np.concatenate(users), np.concatenate(items)
