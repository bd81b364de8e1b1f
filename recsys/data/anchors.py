"""Tables of preference anchors: what all users did, point-in-time, a row of tables a time bin.

The log is cut into bins of about equally many events. The row of a bin is written before any event
of the bin is read, so it knows completed bins only. A request at t with ``e_b <= t < e_(b+1)``
reads row b, and nothing that happens from ``e_b`` on can change what it reads::

    edges       e0        e1           e2           e3 = just after the last event
    row         0         1            2            3, the newest: a model folder carries this one
    fitted on   nothing   before e1    before e2    everything

Every event counts where the split is by time; leave-one-out counts training events only, since
there a held-out event may be older than a training one.

Logs without times have no "before". Their rows are user folds instead: row f is fitted on the
training events of users outside fold f, and users of fold f read it. Without folds a graph would
hold the reader's own next event: the very pair (last item, next item) that training asks for, at
least once. The model would learn to copy its answer from the anchors, where it never is in use.

An event counts 1 for every task it reaches: a click 1, a cart 2, an order 3, 0 outside the funnel;
without a funnel every event counts 1. Folder layout, int32 ids, ``PAD`` where a list is short::

    anchors/anchors.json            AnchorInfo
    anchors/trending.npy            (rows, length)
    anchors/category.npy            (rows, num_coarse, length)
    anchors/neighbours.npy          (rows, N, length), and neighbours_weight.npy, float16
    anchors/query.npy               (rows, queries, length)
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recsys.config import from_dict, read_json, write_json
from recsys.schema import Manifest
from recsys.types import FIRST_BEHAVIOR

TableName = Literal["trending", "category", "neighbours", "query"]
Ints = NDArray[np.integer]

FOLDER = "anchors"
QUERY = "query"
"""The event feature that the table of queries is about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorsConfig:
    """Which tables of preference anchors to fit, and how."""

    names: tuple[TableName, ...] = ()
    """Tables to fit. (The group ``own`` needs none.)"""
    num_bins: int = 16
    """Time bins, or user folds where the logs have no times."""
    length: int = 30
    """Items kept a list, best first."""
    decay: float = 0.5
    """What a count is worth one bin later: 1 keeps everything alike, 0 the last bin alone."""
    graph: Literal["cosine", "swing"] = "cosine"
    """Weight of a neighbour; swing takes minutes a bin from some 10,000 items on."""
    graph_events: int = 1_000_000
    """About how many events neighbours are counted on (whole users, chosen by hash)."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name, low in (("num_bins", 1), ("length", 1), ("graph_events", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least {low}.")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay ({self.decay}) must be between 0 and 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorInfo:
    """What the tables are; saved as ``anchors.json``."""

    names: tuple[TableName, ...] = ()
    length: int = 0
    edges: tuple[int, ...] = ()
    """Start of each row's bin, seconds since 1970, ascending; empty for logs without times."""
    folds: int = 0
    """User folds of logs without times; one more row is fitted on everybody."""

    @property
    def num_rows(self) -> int:
        """Rows of every table."""
        return len(self.edges) or self.folds + 1

    def row_of(self, user_row: Ints, timestamp: Ints) -> NDArray[np.int64]:
        """Row of the tables that requests may read.

        Args:
            user_row: Rows of the users in their bucket, (B,).
            timestamp: Moments, seconds since 1970, (B, Q).

        Returns:
            Rows, (B, Q). An only row, such as a model folder's, is read at any time.
        """
        if self.edges:
            row = np.searchsorted(np.array(self.edges), timestamp, side="right") - 1
            return np.maximum(row, 0)
        fold = user_row % self.folds if self.folds else np.zeros_like(user_row)
        return np.broadcast_to(fold[:, None], timestamp.shape).astype(np.int64)


@dataclass(frozen=True, slots=True)
class AnchorTables:
    """Opened tables, memory-mapped: a batch reads the few lists it needs."""

    info: AnchorInfo
    arrays: dict[str, NDArray[Any]]
    coarse: NDArray[np.int32]
    """Coarse code of each item, (N,)."""
    event_weight: NDArray[np.float64]
    """What an event of each behavior code counts."""

    @staticmethod
    def open(folder: Path) -> "AnchorTables":
        """Open the tables of a prepared data set or of a model folder.

        Args:
            folder: With ``manifest.json``, ``items.arrow`` and, where tables were fitted,
                ``anchors/``.

        Returns:
            The tables; none where none were fitted.

        Raises:
            ValueError: If a file is missing, damaged or of another shape than declared.
        """
        where = folder / "manifest.json"
        manifest = from_dict(Manifest, read_json(where), where=str(where))
        info = AnchorInfo()
        if (folder / FOLDER).is_dir():
            where = folder / FOLDER / "anchors.json"
            info = from_dict(AnchorInfo, read_json(where), where=str(where))
        arrays: dict[str, NDArray[Any]] = {}
        for name in info.names:
            shape = (info.num_rows, *groups_of(name, manifest), info.length)
            for part, kind in files_of(name).items():
                arrays[part] = _map(folder / FOLDER / f"{part}.npy", shape, kind)
        from recsys.data.dataset import read_arrow  # imports torch, which preparing does without

        coarse = read_arrow(folder / "items.arrow")["coarse"].to_numpy()
        return AnchorTables(info, arrays, coarse, event_weights(manifest))


def files_of(name: TableName) -> dict[str, type[np.generic]]:
    """Arrays of a table and their types."""
    ids: dict[str, type[np.generic]] = {name: np.int32}
    return ids | {f"{name}_weight": np.float16} if name == "neighbours" else ids


def _map(path: Path, shape: tuple[int, ...], kind: type[np.generic]) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a table of anchors: {error}.") from None
    if array.shape != shape or array.dtype != kind:
        raise ValueError(
            f"{path} holds {array.dtype} {array.shape}, not {np.dtype(kind)} {shape} as declared."
        )
    return array


def groups_of(name: TableName, manifest: Manifest) -> tuple[int, ...]:
    """What one row of a table is about: everything at once, categories, items or queries."""
    if name == "trending":
        return ()
    if name == "category":
        return (manifest.num_coarse,)
    if name == "neighbours":
        return (manifest.num_items,)
    asked = manifest.event_features if QUERY in manifest.columns.situation else ()
    rows = [f.rows for f in asked if f.name == QUERY and f.kind == "categorical"]
    if not rows:
        raise ValueError(
            f"The anchors {QUERY!r} need a categorical event column {QUERY!r}, declared in both "
            f"columns.event_features {manifest.columns.event_features} and columns.situation "
            f"{manifest.columns.situation}."
        )
    return (rows[0],)


def event_weights(manifest: Manifest) -> NDArray[np.float64]:
    """What an event of each behavior counts: 1 for every task it reaches.

    Args:
        manifest: Declares behaviors and funnel.

    Returns:
        By behavior code; without a funnel 1 for all but negative feedback.

    Example:
        >>> event_weights(Manifest(behaviors=("cart", "click", "like"), funnel=("click", "cart")))
        array([0., 0., 0., 2., 1., 0.])
    """
    weights = np.zeros(FIRST_BEHAVIOR + len(manifest.behaviors))
    for task in manifest.funnel or (None,):
        weights[list(manifest.codes_at_least(task))] += 1
    return weights


def copy_newest(source: Path, target: Path) -> None:
    """Copy the newest row of the tables, which is fitted on everything, into a model folder.

    Such tables answer now. They know the whole log, so that what was asked earlier is asked of the
    prepared data set instead.

    Args:
        source: A prepared data set or a model folder; nothing happens where it has no tables.
        target: The folder to get an ``anchors/``.
    """
    if not (source / FOLDER).is_dir():
        return
    tables = AnchorTables.open(source)
    (target / FOLDER).mkdir()
    for name, array in tables.arrays.items():
        np.save(target / FOLDER / f"{name}.npy", array[-1:], allow_pickle=False)
    newest = replace(tables.info, edges=tables.info.edges[-1:], folds=0)
    write_json(target / FOLDER / "anchors.json", newest)
