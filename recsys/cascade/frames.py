"""External ids and data frames at the edge of the cascade: frames in, score tables out."""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from typing import TypeAlias

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from recsys.cascade.lists import SOURCES, RankedLists
from recsys.data.dataset import Catalogue
from recsys.data.idmap import DOMAIN_SEPARATOR
from recsys.schema import ITEM_ID, USER_ID

Frame: TypeAlias = pd.DataFrame | pl.DataFrame | pa.Table
Item = str | int | tuple[str, str | int]
"""An external item id; (domain, item id) where items are keyed by both."""


def to_arrow(frame: Frame, columns: Iterable[str]) -> pa.Table:
    """Take the columns the model reads, whatever kind of frame they are in.

    Args:
        frame: A pandas, polars or pyarrow table.
        columns: Which columns; ones it lacks are left out.

    Returns:
        The same values as an Arrow table.

    Raises:
        TypeError: If it is none of the three.
    """
    if isinstance(frame, pl.DataFrame):
        frame = frame.select([c for c in columns if c in frame.columns]).to_arrow()
    elif isinstance(frame, pd.DataFrame):
        frame = frame[[c for c in columns if c in frame.columns]]
        return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata()
    if not isinstance(frame, pa.Table):
        raise TypeError(
            "histories must be a pandas, polars or pyarrow table or a PreparedDataset, not "
            f"{type(frame).__name__}."
        )
    return frame.select([c for c in columns if c in frame.column_names])


def moment_s(moment: datetime | date | str | int | None) -> int | None:
    """Turn a moment into seconds since 1970.

    Args:
        moment: Seconds since 1970, a date or time, or ISO 8601 text; UTC where it has no zone.

    Returns:
        Whole seconds, rounded down; None for None.

    Raises:
        ValueError: If the text is not a time.

    Example:
        >>> moment_s("2024-01-01"), moment_s(7)
        (1704067200, 7)
    """
    if moment is None or (isinstance(moment, int) and not isinstance(moment, bool)):
        return moment
    if isinstance(moment, str):
        if moment.strip().lstrip("-").isdigit():
            return int(moment)
        try:
            moment = datetime.fromisoformat(moment.strip())
        except ValueError:
            raise ValueError(
                f"as_of ({moment!r}) must be seconds since 1970 or ISO 8601, such as "
                "2024-05-01T12:00."
            ) from None
    if isinstance(moment, date) and not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    if not isinstance(moment, datetime):
        raise ValueError(f"as_of ({moment!r}) must be seconds since 1970, a time, or its text.")
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(np.floor(moment.timestamp()))


class ItemNames:
    """External ids of the catalogue, as the score tables show them.

    Args:
        catalogue: The items.
        with_domain: Items are keyed by (domain, item id); tables then have a ``domain`` column.
        integers: Show ids as integers where all of them are.
    """

    def __init__(
        self, catalogue: Catalogue, *, with_domain: bool = False, integers: bool = False
    ) -> None:
        self._catalogue = catalogue
        self.with_domain = with_domain
        names = pa.array(catalogue.item_ids).cast(pa.string())
        self.domain: pa.Array | None = None
        if with_domain:
            parts = pc.split_pattern(names, DOMAIN_SEPARATOR, max_splits=1)
            self.domain = pc.list_element(parts, 0)
            # The reserved rows hold no separator; their name is never shown.
            full = pc.if_else(pc.equal(pc.list_value_length(parts), 2), names, DOMAIN_SEPARATOR)
            names = pc.list_element(pc.split_pattern(full, DOMAIN_SEPARATOR, max_splits=1), 1)
        self.names: pa.Array = as_integers(names) if integers else names

    def columns(self, ids: np.ndarray) -> dict[str, pa.Array]:
        """Columns that name items.

        Args:
            ids: Internal ids, (n,), none negative.

        Returns:
            ``item_id``, and ``domain`` where items are keyed by it, dictionary-encoded if text.
        """
        index = pa.array(ids.astype(np.int32, copy=False))
        found = {ITEM_ID: _encoded(index, self.names)}
        if self.domain is not None:
            found["domain"] = self.domain.take(index).dictionary_encode()
        return found

    def internal(self, items: Sequence[Item]) -> tuple[Tensor, list[Item]]:
        """Look external ids up.

        Args:
            items: External ids; (domain, item id) where items are keyed by both.

        Returns:
            Internal ids of the known ones, in order, int64; and the unknown ones.
        """
        known, unknown = [], []
        for item in items:
            key = DOMAIN_SEPARATOR.join(map(str, item)) if isinstance(item, tuple) else str(item)
            place = self._catalogue.index.get(key)
            if place is None:
                unknown.append(item)
            else:
                known.append(place)
        return torch.tensor(known, dtype=torch.long), unknown


def score_columns(
    user_ids: pa.Array, lists: RankedLists, names: ItemNames, tasks: Sequence[str] = ()
) -> pa.Table:
    """Lay lists out as a table, a row a recommendation.

    Args:
        user_ids: External id of each user of the lists, (U,).
        lists: Of these users.
        names: Of the items.
        tasks: Names of the tasks of the lists' probabilities; none where nothing was ranked.

    Returns:
        ``user_id, item_id, rank, score, source`` (and ``domain``), users in their order, best item
        first; ids and sources dictionary-encoded where text. Places without an item have no row.
        With tasks also ``p_<task>`` and ``retrieval_score`` before the source, null where the item
        was not ranked or is only popular.
    """
    users, k = lists.ids.shape
    kept = (lists.ids >= 0).reshape(-1).numpy()

    def flat(values: Tensor | np.ndarray) -> np.ndarray:
        found = np.asarray(values).reshape(-1)
        return found if kept.all() else found[kept]

    named = names.columns(flat(lists.ids))
    columns = {
        USER_ID: _encoded(pa.array(flat(np.repeat(np.arange(users, dtype=np.int32), k))), user_ids),
        ITEM_ID: named.pop(ITEM_ID),
        "rank": flat(np.tile(np.arange(1, k + 1, dtype=np.int32), users)),
        "score": flat(lists.scores),
    }
    for place, task in enumerate(tasks):
        column = flat(lists.probabilities[:, :, place])
        columns[f"p_{task}"] = pa.array(column, from_pandas=True)
    if tasks:
        columns["retrieval_score"] = pa.array(flat(lists.retrieval), from_pandas=True)
    source = pa.array(flat(lists.source))
    columns["source"] = pa.DictionaryArray.from_arrays(source, list(SOURCES))
    return pa.table(columns | named)


def plain(table: pa.Table) -> pd.DataFrame:
    """Turn a score table into a pandas frame of plain columns.

    Args:
        table: What ``score_columns`` returned.

    Returns:
        The same rows; text columns are text, not categories.
    """
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            decoded = pc.cast(table[field.name], field.type.value_type)
            table = table.set_column(place, field.name, decoded)
    found: pd.DataFrame = table.to_pandas()
    return found


def one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    return column


def as_integers(names: pa.Array) -> pa.Array:
    """Names as integers where every one is (empty ones, of the reserved rows, become 0)."""
    try:
        return pc.cast(pc.if_else(pc.equal(names, ""), "0", names), pa.int64())
    except pa.ArrowInvalid:
        return names


def is_integer_column(schema: pa.Schema, name: str) -> bool:
    """Whether a log has integers in a column, so that tables show its ids as integers too."""
    place = schema.get_field_index(name)
    return place >= 0 and bool(pa.types.is_integer(schema.field(place).type))


def _encoded(index: pa.Array, values: pa.Array) -> pa.Array:
    if pa.types.is_integer(values.type):
        return values.take(index)
    return pa.DictionaryArray.from_arrays(index, values)
