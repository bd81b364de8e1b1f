"""Whose histories are asked for, from events in memory or from a prepared data set.

Events in memory go through the very code that prepares logs on disk, so that a notebook and a
nightly job read a history alike.
"""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from recsys.cascade.frames import Frame, is_integer_column, one_chunk, to_arrow
from recsys.data.dataset import Catalogue, Histories, PreparedDataset
from recsys.data.encode import encode_histories
from recsys.data.idmap import stable_hash
from recsys.schema import ColumnSpec, Manifest

_LOG = logging.getLogger(__name__)

User = str | int


@dataclass(slots=True)
class Selection:
    """Users to answer, in the buckets where their histories are."""

    parts: list[tuple[Histories, Tensor]] = field(default_factory=list)
    """Buckets and the rows asked for in each, int64."""
    integer_users: bool = False
    """Whether the ids came as integers, so that tables show integers again."""
    integer_items: bool = False
    notes: dict[str, int] = field(default_factory=dict)
    """What could not be used, by name; warned of by ``tell``."""

    def user_ids(self) -> pa.Array:
        """External ids of the rows of all parts, in order, as text."""
        found = [one_chunk(b.user_ids).take(pa.array(rows.numpy())) for b, rows in self.parts]
        texts = [ids.cast(pa.large_string()) for ids in found]
        return pa.concat_arrays(texts) if texts else pa.array([], pa.large_string())


def select_frame(
    frame: Frame,
    users: Sequence[User] | None,
    *,
    model: Path,
    columns: ColumnSpec,
    user_features: Frame | None = None,
) -> Selection:
    """Turn raw events into histories, with the ids of a trained model.

    Args:
        frame: Events in the columns of ``columns``.
        users: External ids of those asked for; None for all.
        model: Folder of the model, which holds its vocabularies.
        columns: What the columns stand for.
        user_features: A row a user, where the model reads user features.

    Returns:
        The users found, in the order of their ids.

    Raises:
        ValueError: If a column is missing or of a type that cannot be read, or no row is usable.
        TypeError: If ``frame`` is of no known kind.
    """
    events = to_arrow(frame, event_columns(columns))
    selection = Selection(
        integer_users=is_integer_column(events.schema, columns.user_id),
        integer_items=is_integer_column(events.schema, columns.item_id),
    )
    if users is not None and columns.user_id in events.column_names:
        wanted = pa.array([str(user) for user in users], pa.string())
        events = events.filter(pc.is_in(events[columns.user_id].cast(pa.string()), wanted))
    if not events.num_rows and events.num_columns:
        return selection
    with tempfile.TemporaryDirectory(prefix="recsys-") as name:
        folder = Path(name)
        pq.write_table(events, folder / "events.parquet", compression="none")
        user_files = []
        if user_features is not None:
            table = to_arrow(user_features, [columns.user_id, *columns.user_features])
            pq.write_table(table, folder / "users.parquet", compression="none")
            user_files.append(str(folder / "users.parquet"))
        manifest = encode_histories(
            [str(folder / "events.parquet")],
            model=model,
            out=folder / "encoded",
            users=user_files,
            columns=columns,
            max_reject_fraction=1.0,
            num_buckets=1,
            threads=1,
        )
        # The file stays mapped, and so readable, after its folder is gone.
        bucket = Histories(folder / "encoded" / "histories" / "00000.arrow")
    selection.parts.append((bucket, torch.arange(bucket.num_users)))
    selection.notes["events_with_unknown_items"] = manifest.counts["events.unknown_item"]
    selection.notes |= {f"rejected_{name}": count for name, count in manifest.rejects.items()}
    return selection


def select_prepared(
    dataset: PreparedDataset,
    users: Sequence[User] | None,
    *,
    manifest: Manifest,
    catalogue: Catalogue,
) -> Selection:
    """Find users in a data set that was prepared with the model's vocabularies.

    Args:
        dataset: Where the histories are; all their events are read, whatever part they are in.
        users: External ids of those asked for; None for all.
        manifest: Of the model.
        catalogue: Of the model.

    Returns:
        The users found, bucket by bucket.

    Raises:
        ValueError: If items or behaviors have other ids in the data set than in the model.
    """
    same = dataset.manifest.behaviors == manifest.behaviors
    if not same or not dataset.catalogue.item_ids.equals(catalogue.item_ids):
        raise ValueError(
            f"{dataset.path} was prepared with other vocabularies than the model's; pass raw "
            "events, which are read with the model's own."
        )
    selection = Selection()
    if users is None:
        selection.parts = [(bucket, torch.arange(bucket.num_users)) for bucket in dataset.buckets]
        return selection
    selection.integer_users = bool(users) and all(isinstance(user, int) for user in users)
    wanted = pa.array([str(user) for user in users], pa.large_string())
    home = stable_hash(wanted) % np.uint64(dataset.manifest.num_buckets)
    for number in np.unique(home).tolist():
        bucket = dataset.buckets[number]
        there = wanted.filter(pa.array(home == number))
        place = pc.index_in(there, value_set=one_chunk(bucket.user_ids).cast(pa.large_string()))
        rows = pc.unique(place.drop_null()).to_numpy(zero_copy_only=False)
        if len(rows):
            selection.parts.append((bucket, torch.from_numpy(rows.astype(np.int64))))
    return selection


def event_columns(columns: ColumnSpec) -> list[str]:
    """Names of the event columns that a model reads."""
    named = [columns.user_id, columns.item_id, columns.timestamp, columns.order]
    named += [columns.behavior, columns.domain, *columns.event_features]
    return [name for name in named if name is not None]


def tell(notes: dict[str, int]) -> None:
    """Warn of everything in ``notes`` that is not zero."""
    told = [f"{name.replace('_', ' ')}: {count:,}" for name, count in notes.items() if count]
    if told:
        _LOG.warning("Not everything could be used: %s.", "; ".join(told))
