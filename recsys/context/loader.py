"""A prepared data set as a stream of batches: for training, for evaluation, for scoring.

Training cuts every user's training events into windows of at most ``max_history`` tokens, so that
each event is a target once an epoch, however long the history. Where the windows start is drawn
anew every epoch. The order is a function of (seed, epoch) alone, so a run resumes at any batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from recsys.batch import ContextBatch, EvaluationBatch, Labels
from recsys.context.anchors import AnchorReader
from recsys.context.assemble import assemble
from recsys.context.config import ContextConfig
from recsys.context.descriptors import asked_at
from recsys.context.history import Window, longest_windows, token_places
from recsys.context.shown import Shown, sample_lists, sample_requests
from recsys.data.dataset import Histories, PreparedDataset
from recsys.schema import Manifest
from recsys.types import PAD, UNKNOWN


@dataclass(frozen=True, slots=True)
class TrainingBatches:
    """The training part of a data set, in batches.

    Args:
        dataset: What to read.
        config: How.
        rows: B, windows a batch.
        seed: Of the order, of where windows start, and of which moments become requests.
        sort_within: Batches whose windows are sorted by length together, so that rows of a batch
            are about equally long and little is padding.
        anchors: Reads preference anchors, where the config names some.
    """

    dataset: PreparedDataset
    config: ContextConfig
    rows: int = 128
    seed: int = 0
    sort_within: int = 32
    anchors: AnchorReader | None = None

    def num_batches(self, epoch: int = 0) -> int:
        """Batches of an epoch."""
        return sum(-(-len(w) // self.rows) for w in self._windows(epoch))

    def _random(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.seed, epoch, stream]))

    def _windows(self, epoch: int) -> list[np.ndarray]:
        """Windows of every bucket: user row, first event, targets, tokens; (W, 4) int64."""
        found = []
        length = self.config.max_history
        for number, bucket in enumerate(self.dataset.buckets):
            places = token_places(bucket, self.config).numpy()
            start = bucket.offsets[:-1].numpy()
            targets = (bucket.train_end - 1).clamp(min=0).numpy()
            tokens = np.where(targets > 0, places[start + targets - 1] + 1 - places[start], 0)
            draw = self._random(epoch, number).integers(0, length, size=len(tokens))
            # A user of more tokens than a window has its first window shortened by the draw.
            first = np.where(tokens > length, length - draw, tokens)
            count = 1 + -(-(tokens - first) // length)
            row = np.repeat(np.arange(len(tokens)), count)
            ordinal = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
            low = np.where(ordinal == 0, 0, first[row] + (ordinal - 1) * length)
            high = np.minimum(first[row] + ordinal * length, tokens[row])
            begin, end = (np.searchsorted(places, places[start[row]] + x) for x in (low, high))
            taken = places[end - 1] + 1 - places[begin]
            windows = np.stack((row, begin - start[row], end - begin, taken), axis=1)
            found.append(windows[windows[:, 2] > 0])
        return found

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[ContextBatch, Labels]]:
        """Stream one epoch.

        Args:
            epoch: Its number, from 0.
            start: Batches to skip, for a run that resumes.

        Yields:
            A batch and its labels.
        """
        windows = self._windows(epoch)
        random = self._random(epoch, len(windows))
        plan: list[tuple[int, np.ndarray]] = []
        for number, found in enumerate(windows):
            found = found[random.permutation(len(found))]
            span = self.rows * self.sort_within
            for at in range(0, len(found), span):
                part = found[at : at + span]
                part = part[np.argsort(part[:, 3], kind="stable")]
                plan += [(number, part[i : i + self.rows]) for i in range(0, len(part), self.rows)]
        for place, chosen in enumerate(random.permutation(len(plan))):
            if place >= start:
                draws = self._random(epoch, len(windows) + 1 + place)
                number, part = plan[chosen]
                yield self._batch(number, part, draws)

    def _batch(
        self, number: int, windows: np.ndarray, random: np.random.Generator
    ) -> tuple[ContextBatch, Labels]:
        bucket, manifest = self.dataset.buckets[number], self.dataset.manifest
        row, first, length, _ = torch.from_numpy(windows).unbind(dim=1)
        start = bucket.offsets[row] + first
        window = Window(start, length)
        shown: Shown | None = None
        if self.config.candidates == "impressions":
            lists = self.dataset.impressions[number]
            shown = sample_requests(lists, row, first, length, self.config, random)
            cut, is_real, timestamp, asked = shown.cut, shown.is_real, shown.timestamp, shown.asked
        else:
            cut, is_real = self._moments(length, random)
            at = torch.where(is_real, start[:, None] + cut, 0)
            timestamp = torch.where(is_real, bucket.events["timestamp"].values[at].long(), 0)
            asked = asked_at(bucket, manifest, at)
        context, moved_to = assemble(
            bucket,
            manifest,
            self.config,
            rows=row,
            window=window,
            cut=cut,
            is_real=is_real,
            timestamp=timestamp,
            asked=asked,
            anchors=self.anchors,
        )
        inside = torch.arange(int(length.max())) < length[:, None]
        following = torch.where(inside, start[:, None] + 1 + torch.arange(inside.shape[1]), 0)
        item = bucket.events["item"].values[following].long()
        counts = inside & (item != UNKNOWN) & _may_be_target(bucket, manifest, following)
        item = torch.where(counts, item, PAD)
        next_item = torch.zeros_like(context.history.item)
        rows, columns = inside.nonzero(as_tuple=True)
        next_item[rows, moved_to[rows, columns]] = item[rows, columns]
        end = bucket.offsets[row] + bucket.train_end[row]
        tasks = next_of_tasks(bucket, manifest, start[:, None] + cut, end[:, None])
        tasks = tasks.masked_fill(~is_real[..., None], PAD)
        if shown is None:
            return context, Labels(next_item, tasks)
        candidates, level = sample_lists(lists, shown, self.config, random)
        requests = replace(context.requests, candidates=candidates)
        return replace(context, requests=requests), Labels(next_item, tasks, level)

    def _moments(self, length: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw moments of windows without replacement: cuts (B, Q), and which of them are real."""
        width = int(length.max())
        num_requests = min(self.config.requests_per_row, width)
        # The smallest of one random number a position, 2 where there is none.
        score = torch.from_numpy(random.random((len(length), width)))
        score = torch.where(torch.arange(width) < length[:, None], score, 2.0)
        picked, place = score.topk(num_requests, dim=1, largest=False)
        is_real = picked < 1.5
        return torch.where(is_real, place + 1, 0), is_real


def next_of_tasks(bucket: Histories, manifest: Manifest, at: Tensor, end: Tensor) -> Tensor:
    """The next item of each task, from a place in the flat columns on.

    Labels nest: an order is a cart is a click, so the next click is the next event of that
    behavior or of a stronger one.

    Args:
        bucket: Where the events are.
        manifest: Declares the funnel; without one there is a single task, the next event.
        at: First place to look at for each request, any shape, int64.
        end: First place not to look at, broadcast to the same shape.

    Returns:
        Internal ids, weakest task first, (..., S) int64; ``PAD`` where there is none.
    """
    item = bucket.events["item"].values
    found = []
    for task in manifest.funnel or (None,):
        places = bucket.places_of(manifest.codes_at_least(task))
        index = torch.searchsorted(places, at.contiguous())
        place = torch.cat((places, torch.tensor([len(item)])))[index]
        found.append(torch.where(place < end, item[place.clamp(max=len(item) - 1)], PAD))
    labels = torch.stack(found, dim=-1).long()
    return labels.masked_fill(labels == UNKNOWN, PAD)


def _may_be_target(bucket: Histories, manifest: Manifest, place: Tensor) -> Tensor:
    """Which events count as answers: all but negative feedback, bool of the same shape."""
    if not manifest.negative_feedback:
        return torch.ones_like(place, dtype=torch.bool)
    behavior = bucket.events["behavior"].values[place]
    return torch.isin(behavior, torch.tensor(manifest.codes_at_least(None), dtype=behavior.dtype))


def evaluation_batches(
    dataset: PreparedDataset,
    config: ContextConfig,
    *,
    part: Literal["validation", "test"],
    batch_size: int,
    max_users: int | None = None,
    anchors: AnchorReader | None = None,
) -> Iterator[EvaluationBatch]:
    """Stream the targets of a part, one request a row.

    A target is an event of the part that counts (``manifest.target_behavior``): a user's first,
    last or all of them, as ``manifest.split.target`` says. The request sees every event before
    it, whatever part that is in. Rows of a batch are about equally long.

    Args:
        dataset: What to read.
        config: How.
        part: Which part's targets.
        batch_size: B.
        max_users: Stop after about so many targets (whole data set otherwise), spread evenly.
        anchors: Reads preference anchors, where the config names some.

    Yields:
        Batches; ``user_index`` counts users through the buckets in order.
    """
    manifest, base = dataset.manifest, 0
    for bucket in dataset.buckets:
        row, place = _targets(bucket, manifest, part)
        if max_users is not None:
            share = max_users / max(1, manifest.num_users)
            row, place = _thin(row, place, max(1, round(share * bucket.num_users)))
        for chosen, window in by_length(bucket, config, row, place, batch_size):
            at = row[chosen], place[chosen], window
            yield _evaluation_batch(dataset, bucket, config, *at, base, anchors)
        base += bucket.num_users


def by_length(
    bucket: Histories, config: ContextConfig, row: Tensor, place: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Window]]:
    """Deal requests into batches whose prefixes are about equally long.

    Args:
        bucket: The users.
        config: How to read them.
        row: User of each request, (R,) int64.
        place: Events of that user before the request, (R,) int64.
        batch_size: B.

    Yields:
        Which requests, (B,) int64, and the events that each sees.
    """
    windows, tokens = longest_windows(bucket, config, row, place)
    order = torch.argsort(tokens, stable=True)
    for chosen in order.split(batch_size) if len(order) else ():  # type: ignore[no-untyped-call]
        yield chosen, windows.take(chosen)


def _thin(row: Tensor, place: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    if len(row) <= limit:
        return row, place
    kept = torch.linspace(0, len(row) - 1, limit).round().long()
    return row[kept], place[kept]


def _targets(bucket: Histories, manifest: Manifest, part: str) -> tuple[Tensor, Tensor]:
    """User row and place inside the history of every target of a part."""
    length = bucket.offsets[1:] - bucket.offsets[:-1]
    low = bucket.train_end if part == "validation" else bucket.valid_end
    high = bucket.valid_end if part == "validation" else length
    count = (high - low).clamp(min=0)
    row = torch.arange(bucket.num_users).repeat_interleave(count)
    ordinal = torch.arange(len(row)) - (count.cumsum(0) - count).repeat_interleave(count)
    place = low[row] + ordinal
    if manifest.target_behavior is not None or manifest.negative_feedback:
        codes = manifest.codes_at_least(manifest.target_behavior)
        behavior = bucket.events["behavior"].values[bucket.offsets[row] + place]
        kept = torch.isin(behavior, torch.tensor(codes, dtype=behavior.dtype))
        row, place = row[kept], place[kept]
    if manifest.split.target == "all" or not len(row):
        return row, place
    changes = row[1:] != row[:-1]
    edge = torch.ones(len(row), dtype=torch.bool)
    if manifest.split.target == "first":
        edge[1:] = changes
    else:
        edge[:-1] = changes
    return row[edge], place[edge]


def _evaluation_batch(
    dataset: PreparedDataset,
    bucket: Histories,
    config: ContextConfig,
    row: Tensor,
    place: Tensor,
    window: Window,
    base: int,
    anchors: AnchorReader | None,
) -> EvaluationBatch:
    target_at = bucket.offsets[row] + place
    context = last_request(
        bucket,
        dataset.manifest,
        config,
        row,
        window,
        timestamp=bucket.events["timestamp"].values[target_at].long(),
        asked=asked_at(bucket, dataset.manifest, target_at),
        anchors=anchors,
    )
    return EvaluationBatch(
        context=context,
        target=bucket.events["item"].values[target_at].long(),
        seen=_seen(bucket, dataset.manifest, row, place),
        user_index=row + base,
        history_length=place,
    )


def last_request(
    bucket: Histories,
    manifest: Manifest,
    config: ContextConfig,
    row: Tensor,
    window: Window,
    *,
    timestamp: Tensor,
    asked: dict[str, Tensor] | None = None,
    anchors: AnchorReader | None = None,
) -> ContextBatch:
    """One request a row, which sees all of its window.

    Args:
        bucket: The users.
        manifest: What its columns mean.
        config: How to read them.
        row: The users, (B,) int64.
        window: The events of each that it sees.
        timestamp: The moments, (B,) int64.
        asked: What the requests bring along, (B,) each; None = unknown.
        anchors: Reads preference anchors, where the config names some.

    Returns:
        The batch.
    """
    context, _ = assemble(
        bucket,
        manifest,
        config,
        rows=row,
        window=window,
        cut=window.lengths[:, None],
        is_real=torch.ones(len(row), 1, dtype=torch.bool),
        timestamp=timestamp[:, None],
        asked={name: value[:, None] for name, value in (asked or {}).items()},
        anchors=anchors,
    )
    return context


def _seen(bucket: Histories, manifest: Manifest, row: Tensor, place: Tensor) -> Tensor:
    """Every item of the users' histories before ``place``, (B, L) int64, padded with ``PAD``.

    What was only shown and passed over does not count.
    """
    width = max(1, int(place.max())) if len(place) else 1
    inside = torch.arange(width) < place[:, None]
    at = torch.where(inside, bucket.offsets[row][:, None] + torch.arange(width), 0)
    inside &= _may_be_target(bucket, manifest, at)
    return torch.where(inside, bucket.events["item"].values[at].long(), PAD)


def history_batches(
    bucket: Histories,
    manifest: Manifest,
    config: ContextConfig,
    *,
    rows: Tensor | None = None,
    as_of: int | None = None,
    batch_size: int = 256,
    anchors: AnchorReader | None = None,
) -> Iterator[tuple[Tensor, ContextBatch, Tensor]]:
    """Stream users for scoring, one request a row at the end of each history.

    Args:
        bucket: The users.
        manifest: Of the data set the model was trained on.
        config: How to read them.
        rows: Which users, (R,) int64; None for all. Users without visible events come too, with
            an empty history.
        as_of: The moment of scoring, seconds since 1970; events at or after it are not seen. None
            takes each user's last event's time.
        batch_size: B.
        anchors: Reads preference anchors, where the config names some.

    Yields:
        Rows of the bucket (B,), the batch, and the items seen (B, L) padded with ``PAD``.
    """
    rows = torch.arange(bucket.num_users) if rows is None else rows
    place = (bucket.offsets[1:] - bucket.offsets[:-1])[rows]
    times = bucket.events["timestamp"].values
    if as_of is not None and manifest.has_time:
        before = torch.cat((torch.zeros(1, dtype=torch.long), (times < as_of).long().cumsum(0)))
        place = (before[bucket.offsets[1:]] - before[bucket.offsets[:-1]])[rows]
    for chosen, window in by_length(bucket, config, rows, place, batch_size):
        row, visible = rows[chosen], place[chosen]
        last = (bucket.offsets[row] + visible - 1).clamp(min=0)
        moment = times[last].long() if len(times) else torch.zeros_like(last)
        moment = torch.where(visible > 0, moment, 0)
        if as_of is not None and manifest.has_time:
            moment = torch.full_like(moment, as_of)
        context = last_request(
            bucket, manifest, config, row, window, timestamp=moment, anchors=anchors
        )
        yield row, context, _seen(bucket, manifest, row, visible)
