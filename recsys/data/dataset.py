"""A prepared data set, memory-mapped: histories by user bucket, the catalogue, the manifest.

Folder layout, written by ``recsys.data.prepare``::

    manifest.json               recsys.schema.Manifest
    items.arrow                 a row an internal item id; row 0 padding, row 1 unknown
                                item_id string, train_count int64, coarse int32, and a column a
                                feature: categorical int32, multi_hot list<int32>, numeric float32
    items.<feature>.npy         frozen text vectors, float32 (N, width); rows 0 and 1 are zero
    events.<feature>.npy        the same of the values of an event feature, a row a code: its
                                vectors are ``catalogue.event_texts[feature][code]``
    vocabularies.json           feature → its values in code order (code 2 first), for new logs
    histories/00000.arrow …     one record batch a file, a row a user, see below
    impressions/00000.arrow …   only where lists that were shown were given, one a bucket, see below
    rejects/                    rows that were not used, with file, row number and reason

A history row::

    user_id     large_string    external id
    item        large_list<int32>
    timestamp   large_list<int64>       seconds since 1970, or the order column
    behavior    large_list<int8>        codes from FIRST_BEHAVIOR
    domain      large_list<int16>       only where domains are declared
    event.<f>   large_list<int32|float> a declared event feature
    user.<f>    int32 | float | large_list<int32>
    train_end   int32           events [0, train_end) are training,
    valid_end   int32           [train_end, valid_end) validation, [valid_end, …) test

With ``negative_feedback`` items that were shown and passed over are events too, of behavior
``skip``, behind the other events of the second in which that was known (``shown.with_skips``).

An impressions row, one a list, by (user, timestamp, first row of the log)::

    user        int32           row of the bucket's histories
    timestamp   int64           seconds since 1970, when the list was shown
    place       int32           events of the user strictly before that second
    item        large_list<int32>       in the order shown, ``UNKNOWN`` where not in the catalogue
    label       large_list<int8>        0 shown only, s + 1 = task s was the strongest reached
    position    large_list<int16>       place in the list from 1; 0 unknown
    part        int8            0 training, 1 validation, 2 test, by the split times; in a
                                leave-one-out split held back with the user's held-back events
    event.<f>   int32 | float   a situation column, where the log of lists has it
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from recsys.config import from_dict, read_json
from recsys.schema import FORMAT_VERSION, Feature, Manifest


def read_arrow(path: Path) -> pa.Table:
    """Memory-map one Arrow IPC file.

    Args:
        path: The file.

    Returns:
        Its table; nothing is copied until a column is used.

    Raises:
        ValueError: If the file is missing or is not an Arrow IPC file.
    """
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} cannot be read as an Arrow file: {error}.") from None


def _text_vectors(path: Path, shape: tuple[int, int]) -> Tensor:
    """Memory-map text vectors of a known shape."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as text vectors: {error}.") from None
    if array.shape != shape or array.dtype != np.float32:
        raise ValueError(
            f"{path} holds {array.dtype} {array.shape}, not float32 {shape} as declared."
        )
    return torch.from_numpy(array)


@dataclass(frozen=True, slots=True)
class Jagged:
    """A list column as two tensors that share Arrow's memory: read only, never written in place."""

    values: Tensor
    """All rows end to end, (sum of lengths,)."""
    offsets: Tensor
    """Where each row starts, (rows + 1,) int64."""

    def row(self, index: int) -> Tensor:
        """The values of one row, a view."""
        return self.values[int(self.offsets[index]) : int(self.offsets[index + 1])]


def jagged_column(table: pa.Table, name: str) -> Jagged:
    """View a list column as tensors without copying.

    Args:
        table: A table of one chunk.
        name: A list column.

    Returns:
        Its values and offsets.
    """
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    return Jagged(from_dlpack(column.values), from_dlpack(column.offsets).long())


class Histories:
    """One bucket of users: jagged event columns and plain user columns."""

    def __init__(self, path: Path) -> None:
        table = read_arrow(path)
        self._table = table
        self.num_users: int = table.num_rows
        self._places: dict[tuple[int, ...], Tensor] = {}
        self.events: dict[str, Jagged] = {
            name: jagged_column(table, name)
            for name in table.column_names
            if pa.types.is_large_list(table.schema.field(name).type)
            and not name.startswith("user.")
        }
        self.user_lists: dict[str, Jagged] = {
            name.removeprefix("user."): jagged_column(table, name)
            for name in table.column_names
            if pa.types.is_large_list(table.schema.field(name).type) and name.startswith("user.")
        }
        self.user_values: dict[str, Tensor] = {
            name.removeprefix("user."): torch.tensor(table[name].to_numpy())
            for name in table.column_names
            if name.startswith("user.") and name.removeprefix("user.") not in self.user_lists
        }
        self.train_end = torch.tensor(table["train_end"].to_numpy()).long()
        self.valid_end = torch.tensor(table["valid_end"].to_numpy()).long()

    def places_of(self, behaviors: tuple[int, ...]) -> Tensor:
        """Where events of some behaviors are in the flat columns; found once and kept.

        Args:
            behaviors: Codes.

        Returns:
            Ascending places, int64.
        """
        if behaviors not in self._places:
            behavior = self.events["behavior"].values
            wanted = torch.tensor(behaviors, dtype=behavior.dtype)
            self._places[behaviors] = torch.isin(behavior, wanted).nonzero()[:, 0]
        return self._places[behaviors]

    @property
    def offsets(self) -> Tensor:
        """Where each user's events start, (num_users + 1,) int64."""
        return self.events["item"].offsets

    @property
    def user_ids(self) -> pa.ChunkedArray:
        """External user ids, in row order."""
        return self._table["user_id"]


class Impressions:
    """The lists that one bucket's users were shown: R of them."""

    def __init__(self, path: Path) -> None:
        table = read_arrow(path)
        flat = {
            name: torch.tensor(table[name].to_numpy())
            for name in table.column_names
            if not pa.types.is_large_list(table.schema.field(name).type)
        }
        self.user = flat.pop("user").long()
        """Rows of the bucket's histories, (R,) int64, ascending."""
        self.timestamp = flat.pop("timestamp")
        """Seconds since 1970, (R,) int64, ascending inside a user."""
        self.place = flat.pop("place").long()
        """Events of the user's history before that moment, (R,) int64."""
        self.part = flat.pop("part").long()
        """0 training, 1 validation, 2 test, (R,) int64."""
        self.situation = {name.removeprefix("event."): value for name, value in flat.items()}
        """Codes (R,) int32 and numbers (R,) float32 of the moment."""
        self.item = jagged_column(table, "item")
        self.label = jagged_column(table, "label")
        self.position = jagged_column(table, "position")

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class Catalogue:
    """Everything declared of the items, one row an internal id."""

    item_ids: pa.Array
    """External ids as strings; rows 0 and 1 are empty."""
    train_count: Tensor
    """Training events of each item, (N,) int64."""
    coarse: Tensor
    """Coarse code of each item (category or cluster), (N,) int64; 0 for the reserved rows."""
    num_trained: int
    features: tuple[Feature, ...]
    values: dict[str, Tensor]
    """Categorical (N,) int64, numeric (N,) float32, text (N, width) float32."""
    lists: dict[str, Jagged]
    """Multi-hot features."""
    event_texts: dict[str, Tensor] = field(default_factory=dict)
    """Text vectors of the values of event features, (codes, width) float32, a row a code."""

    @property
    def num_items(self) -> int:
        """N, the reserved rows included."""
        return len(self.item_ids)

    @cached_property
    def index(self) -> dict[str, int]:
        """External id → internal id."""
        return {name: i for i, name in enumerate(self.item_ids.to_pylist()) if i >= 2}

    @staticmethod
    def read(folder: Path, manifest: Manifest) -> "Catalogue":
        """Read ``items.arrow`` and the text vectors beside it.

        Args:
            folder: The prepared data set or a saved model.
            manifest: Its manifest, which declares the features.

        Returns:
            The catalogue; text vectors stay memory-mapped.

        Raises:
            ValueError: If a file is missing, damaged or not what the manifest declares.
        """
        table = read_arrow(folder / "items.arrow").combine_chunks()
        declared = [f.name for f in manifest.item_features if f.kind != "text"]
        missing = {"item_id", "train_count", "coarse", *declared} - set(table.column_names)
        if missing:
            raise ValueError(f"{folder}/items.arrow lacks the columns {sorted(missing)}.")
        if table.num_rows != manifest.num_items:
            raise ValueError(
                f"{folder}/items.arrow has {table.num_rows} rows, its manifest declares "
                f"{manifest.num_items}."
            )
        values: dict[str, Tensor] = {}
        lists: dict[str, Jagged] = {}
        for feature in manifest.item_features:
            if feature.kind == "text":
                path = folder / f"items.{feature.name}.npy"
                values[feature.name] = _text_vectors(path, (manifest.num_items, feature.width))
            elif feature.kind == "multi_hot":
                lists[feature.name] = jagged_column(table, feature.name)
            else:
                column = torch.tensor(table[feature.name].to_numpy())
                values[feature.name] = (
                    column.long() if feature.kind == "categorical" else column.float()
                )
        return Catalogue(
            item_ids=table["item_id"].combine_chunks(),
            train_count=torch.tensor(table["train_count"].to_numpy()),
            coarse=torch.tensor(table["coarse"].to_numpy()).long(),
            num_trained=manifest.num_trained_items,
            features=manifest.item_features,
            values=values,
            lists=lists,
            event_texts={
                f.name: _text_vectors(folder / f"events.{f.name}.npy", (f.rows, f.width))
                for f in manifest.event_texts
            },
        )


class PreparedDataset:
    """A prepared data set on disk; opening it reads the manifest and maps the rest.

    Args:
        path: The folder that ``prepare`` wrote.

    Raises:
        ValueError: If the folder is not a prepared data set of this version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        values: Any = read_json(self.path / "manifest.json")
        if not isinstance(values, dict) or values.get("version") != FORMAT_VERSION:
            found = values.get("version") if isinstance(values, dict) else None
            raise ValueError(
                f"{self.path} holds a prepared data set of version {found!r}; this library reads "
                f"version {FORMAT_VERSION}: run `python -m pipelines prepare` again."
            )
        self.manifest = from_dict(Manifest, values, where=f"{self.path}/manifest.json")

    @cached_property
    def catalogue(self) -> Catalogue:
        """The items."""
        return Catalogue.read(self.path, self.manifest)

    @cached_property
    def buckets(self) -> tuple[Histories, ...]:
        """All buckets, memory-mapped."""
        return tuple(
            Histories(self.path / "histories" / f"{i:05d}.arrow")
            for i in range(self.manifest.num_buckets)
        )

    @cached_property
    def impressions(self) -> tuple[Impressions, ...]:
        """Lists that were shown, bucket by bucket; empty where none were given."""
        count = self.manifest.num_buckets if self.manifest.num_impressions else 0
        return tuple(
            Impressions(self.path / "impressions" / f"{i:05d}.arrow") for i in range(count)
        )

    @cached_property
    def vocabularies(self) -> dict[str, list[str]]:
        """Feature (``item.x``, ``user.x``, ``event.x``) → values in code order, from code 2 on."""
        found: dict[str, list[str]] = read_json(self.path / "vocabularies.json")
        return found

    def training_events(self, *names: str) -> tuple[np.ndarray, ...]:
        """Copy the training events into memory, users in order, chronological inside each.

        Negative feedback is left out: popularity and co-occurrence come from what users did.

        Args:
            *names: Event columns, such as ``item``.

        Returns:
            The number of each event's user, counted through the buckets, then the columns: flat
            int64 arrays of equal length.
        """
        parts, before = [], 0
        done = self.manifest.codes_at_least(None)
        for bucket in self.buckets:
            offsets, keep = bucket.offsets.numpy(), bucket.train_end.numpy()
            user = np.repeat(np.arange(bucket.num_users), keep)
            first = np.cumsum(keep) - keep
            index = np.arange(len(user)) - first[user] + offsets[:-1][user]
            if self.manifest.negative_feedback:
                kept = np.isin(bucket.events["behavior"].values.numpy()[index], done)
                user, index = user[kept], index[kept]
            columns = [bucket.events[n].values.numpy()[index].astype(np.int64) for n in names]
            parts.append((user + before, *columns))
            before += bucket.num_users
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
