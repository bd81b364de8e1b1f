"""Lists of candidates as batches for testing the ranking stage, one request a row.

The lists are those that were shown (``PreparedDataset.impressions``) or any others of the same
form, such as a retrieval's answers. The request sees the user's events before its moment.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final, Literal

import torch
from torch import Tensor

from recsys.batch import CandidateSet, ContextBatch
from recsys.context.anchors import AnchorReader
from recsys.context.config import ContextConfig
from recsys.context.history import Window
from recsys.context.loader import by_length, last_request
from recsys.data.dataset import Histories, Impressions, Jagged, PreparedDataset

Part = Literal["training", "validation", "test"]
PARTS: Final[tuple[Part, ...]] = ("training", "validation", "test")
"""Index = code."""


@dataclass(frozen=True, slots=True)
class RequestLists:
    """Requests of one bucket's users, each with a list of items."""

    user: Tensor
    """Row of the bucket's histories, (R,)."""
    timestamp: Tensor
    """The moments, seconds since 1970, (R,)."""
    place: Tensor
    """Events of the user's history before the moment, (R,)."""
    part: Tensor
    """Index into ``PARTS``, (R,)."""
    item: Jagged
    """Internal ids in the order of the list."""
    label: Jagged
    """0 = nothing, s + 1 = task s, the strongest that was reached."""
    position: Jagged
    """Place in the list as it was shown, from 1; 0 = unknown."""
    situation: dict[str, Tensor]
    """Declared situation columns, (R,) each."""

    @staticmethod
    def of(shown: Impressions) -> "RequestLists":
        """The lists that were shown to a bucket's users."""
        return RequestLists(**{f.name: getattr(shown, f.name) for f in fields(RequestLists)})


@dataclass(frozen=True, slots=True)
class RankingBatch:
    """One request a row with its list, and what became of every item of it."""

    context: ContextBatch
    """Its ``requests.candidates`` hold the list in order, C at a time, (B, 1, G, C)."""
    level: Tensor
    """As ``Labels.candidate_level``, (B, 1, G, C) int64."""
    user_index: Tensor
    """Row of the user in the data set, (B,) int64."""
    request: Tensor
    """Row of the request among all lists of the data set, (B,) int64: a key for grouping."""

    @property
    def candidates(self) -> CandidateSet:
        """The lists."""
        found = self.context.requests.candidates
        assert found is not None
        return found


def impression_batches(
    dataset: PreparedDataset,
    config: ContextConfig,
    *,
    part: Part,
    batch_size: int,
    max_requests: int | None = None,
    lists: Sequence[RequestLists] | None = None,
    anchors: AnchorReader | None = None,
) -> Iterator[RankingBatch]:
    """Stream the lists of a part. Rows of a batch have about equally long histories.

    Args:
        dataset: What to read.
        config: How; ``group_size`` is C. A list longer than C takes several groups.
        part: Which part's requests.
        batch_size: B.
        max_requests: Take so many requests of the part, spread evenly; all by default.
        lists: One a bucket; None takes the data set's impressions.
        anchors: Reads preference anchors, where the config names some.

    Yields:
        Batches. Empty lists are left out.

    Raises:
        ValueError: If there are no lists.
    """
    if lists is None:
        lists = [RequestLists.of(shown) for shown in dataset.impressions]
    if not lists:
        raise ValueError(
            f"{dataset.path} holds no impressions: prepare it with --impressions, or have the "
            "candidates built."
        )
    users = requests = 0
    chosen = _rows_of_part(lists, part, max_requests)
    for bucket, shown, rows in zip(dataset.buckets, lists, chosen, strict=True):
        user, place = shown.user[rows].long(), shown.place[rows].long()
        for picked, window in by_length(bucket, config, user, place, batch_size):
            batch = _batch(dataset, bucket, shown, config, rows[picked], window, anchors)
            yield replace(
                batch, user_index=batch.user_index + users, request=batch.request + requests
            )
        users += bucket.num_users
        requests += len(shown.user)


def _rows_of_part(lists: Sequence[RequestLists], part: Part, limit: int | None) -> list[Tensor]:
    """Rows of a part that hold a candidate, of every bucket, ``limit`` of them in all."""
    wanted = [
        ((shown.part == PARTS.index(part)) & (shown.item.offsets.diff() > 0)).nonzero()[:, 0]
        for shown in lists
    ]
    total = sum(len(rows) for rows in wanted)
    if limit is None or total <= limit:
        return wanted
    kept = torch.linspace(0, total - 1, limit, dtype=torch.float64).round().long()
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[kept] = True
    sizes = [len(rows) for rows in wanted]
    return [rows[keep] for rows, keep in zip(wanted, chosen.split(sizes), strict=True)]  # type: ignore[no-untyped-call]


def _batch(
    dataset: PreparedDataset,
    bucket: Histories,
    lists: RequestLists,
    config: ContextConfig,
    rows: Tensor,
    window: Window,
    anchors: AnchorReader | None,
) -> RankingBatch:
    """Some lists of a bucket; users and requests are counted inside it."""
    user = lists.user[rows].long()
    context = last_request(
        bucket,
        dataset.manifest,
        config,
        user,
        window,
        timestamp=lists.timestamp[rows].long(),
        asked={name: values[rows] for name, values in lists.situation.items()},
        anchors=anchors,
    )
    groups = -(-int(lists.item.offsets.diff()[rows].max()) // config.group_size)

    def grouped(column: Jagged) -> Tensor:
        flat = _padded(column, rows, groups * config.group_size)
        return flat.view(len(rows), 1, groups, config.group_size)

    candidates = CandidateSet(grouped(lists.item), grouped(lists.position))
    return RankingBatch(
        context=replace(context, requests=replace(context.requests, candidates=candidates)),
        level=grouped(lists.label),
        user_index=user,
        request=rows,
    )


def _padded(column: Jagged, rows: Tensor, width: int) -> Tensor:
    """Rows of a list column side by side, padded with 0, (rows, width) int64."""
    start = column.offsets[rows][:, None]
    inside = torch.arange(width) < column.offsets[rows + 1][:, None] - start
    at = torch.where(inside, start + torch.arange(width), 0)
    return torch.where(inside, column.values[at].long(), 0)
