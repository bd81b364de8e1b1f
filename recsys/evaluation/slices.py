"""Groups of requests that are looked at apart: a mean hides who is served well and who is not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.data.dataset import PreparedDataset
from recsys.evaluation.run import CatalogueLike
from recsys.evaluation.table import UserTable
from recsys.types import FIRST_BEHAVIOR, FIRST_ID

FEW_USERS = 50
"""A slice with fewer users is flagged: its interval is wide and its bootstrap unreliable."""

HISTORY_BINS = (0, 1, 5, 10, 20, 50, 200)
"""First history length of each bin, events."""

HEAD_SHARE, MID_SHARE = 0.5, 0.8
"""Head items draw the first half of the training events, mid items the next 30 %."""

Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SliceColumn:
    """One way to divide the requests."""

    labels: tuple[str, ...]
    codes: Codes
    """Index into ``labels`` for each request, (R,); -1 = in none."""

    def __post_init__(self) -> None:
        """Check the codes."""
        if len(self.codes) and self.codes.max() >= len(self.labels):
            raise ValueError(
                f"codes reach {self.codes.max()}, but there are {len(self.labels)} labels."
            )

    def rows(self, label: str) -> NDArray[np.bool_]:
        """Which requests carry a label, (R,) bool."""
        found: NDArray[np.bool_] = self.codes == self.labels.index(label)
        return found

    def texts(self) -> list[str | None]:
        """The label of each request; None where it has none."""
        return [self.labels[c] if c >= 0 else None for c in self.codes.tolist()]


def slice_columns(
    table: UserTable, catalogue: CatalogueLike, dataset: PreparedDataset | None = None
) -> dict[str, SliceColumn]:
    """Divide the requests by everything that is known of them.

    Args:
        table: What ``evaluate`` returned.
        catalogue: The items.
        dataset: The data set, for the domain and the behavior of the targets; None = without.

    Returns:
        ``history_length``, ``item_popularity`` (head, mid, tail, cold), ``target`` (trained, cold),
        ``repeat`` where targets that were seen can be hit, and ``domain`` and ``behavior`` where
        there are several. A column that puts all requests into one slice is left out.
    """
    count = catalogue.train_count.numpy()
    popularity = popularity_bins(count)
    trained = count[table.target] > 0
    columns = {
        "history_length": binned(table.history_length, HISTORY_BINS),
        "item_popularity": SliceColumn(("head", "mid", "tail", "cold"), popularity[table.target]),
        "target": SliceColumn(("trained", "cold"), np.where(trained, 0, 1)),
    }
    if not table.filter_seen and table.target_seen.any():
        columns["repeat"] = SliceColumn(("new", "repeat"), table.target_seen.astype(np.int64))
    if dataset is not None:
        manifest = dataset.manifest
        if len(manifest.domains) > 1:
            codes = target_events(dataset, table, "domain") - FIRST_ID
            columns["domain"] = SliceColumn(manifest.domains, np.maximum(codes, -1))
        if len(manifest.behaviors) > 1:
            codes = target_events(dataset, table, "behavior") - FIRST_BEHAVIOR
            columns["behavior"] = SliceColumn(manifest.behaviors, np.maximum(codes, -1))
    return {name: column for name, column in columns.items() if len(np.unique(column.codes)) > 1}


def binned(values: Codes, starts: Sequence[int]) -> SliceColumn:
    """Cut numbers into bins.

    Args:
        values: (R,) integers, at least ``starts[0]``.
        starts: First number of each bin, ascending; the last bin is open.

    Returns:
        Labels such as ``1–4`` and ``200+``.

    Example:
        >>> binned(np.array([0, 4, 900]), (0, 1, 5)).texts()
        ['0', '1–4', '5+']
    """
    labels = [
        str(a) if b == a + 1 else f"{a}–{b - 1}" for a, b in zip(starts, starts[1:], strict=False)
    ]
    codes = np.searchsorted(np.asarray(starts), values, side="right") - 1
    return SliceColumn((*labels, f"{starts[-1]}+"), codes.astype(np.int64))


def popularity_bins(train_count: Codes) -> Codes:
    """Divide items by the share of training events that more popular items draw.

    Args:
        train_count: Training events of each item, (N,).

    Returns:
        (N,): 0 head, 1 mid, 2 tail, 3 cold (no training event). Of equal counts the lower id
        counts as more popular.
    """
    order = np.argsort(-train_count, kind="stable")
    total = max(int(train_count.sum()), 1)
    before = (np.cumsum(train_count[order]) - train_count[order]) / total
    bins = np.empty(len(train_count), dtype=np.int64)
    bins[order] = np.where(before < HEAD_SHARE, 0, np.where(before < MID_SHARE, 1, 2))
    bins[train_count == 0] = 3
    return bins


def target_events(dataset: PreparedDataset, table: UserTable, column: str) -> Codes:
    """Look a column of the target events up: the event after ``history_length`` others.

    Args:
        dataset: The data set that was evaluated.
        table: What ``evaluate`` returned.
        column: An event column, such as ``domain``.

    Returns:
        (R,) int64.
    """
    found = np.zeros(table.num_requests, dtype=np.int64)
    base = 0
    for bucket in dataset.buckets:
        here = (table.user_index >= base) & (table.user_index < base + bucket.num_users)
        place = bucket.offsets.numpy()[table.user_index[here] - base] + table.history_length[here]
        found[here] = bucket.events[column].values.numpy()[place]
        base += bucket.num_users
    return found


def external_user_ids(dataset: PreparedDataset, user_index: Codes) -> list[str]:
    """External ids of users.

    Args:
        dataset: The data set that was evaluated.
        user_index: Rows of the users in it, ascending, (R,).

    Returns:
        One id a request.
    """
    found: list[str] = []
    base = 0
    for bucket in dataset.buckets:
        here = (user_index >= base) & (user_index < base + bucket.num_users)
        found += bucket.user_ids.take(user_index[here] - base).to_pylist()
        base += bucket.num_users
    return found
