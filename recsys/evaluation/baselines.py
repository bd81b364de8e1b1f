"""What any model must beat, fitted on the training part only: popularity, co-occurrence, item-kNN.

Where the two item-to-item baselines have nothing to say (a score of 0), popularity orders the rest;
its share is too small to change the order of anything they do score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.batch import EvaluationBatch, History
from recsys.data.cooccurrence import cooccurrence
from recsys.data.dataset import PreparedDataset
from recsys.schema import Manifest
from recsys.types import FIRST_ID

BaselineName = Literal["popular", "popular_recent", "last_item", "item_knn"]
BASELINES: tuple[BaselineName, ...] = ("popular", "popular_recent", "last_item", "item_knn")

FALLBACK = 1e-6
"""Largest share of popularity in an item-to-item score."""
DAY = 86_400

Ints = NDArray[np.int64]
Floats32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TrainingEvents:
    """The training part as flat arrays, users one after the other, oldest first."""

    user: Ints
    """(E,) a number for each user."""
    item: Ints
    """(E,) internal ids."""
    timestamp: Ints
    """(E,) seconds, or the order column."""
    is_target: NDArray[np.bool_]
    """(E,) whether the event is of the kind that is asked for."""
    manifest: Manifest

    @staticmethod
    def of(dataset: PreparedDataset) -> "TrainingEvents":
        """Copy the training events of a prepared data set into memory, 25 bytes an event.

        Args:
            dataset: The data set.

        Returns:
            Its training events.
        """
        user, item, timestamp, behavior = dataset.training_events("item", "timestamp", "behavior")
        wanted = dataset.manifest.codes_at_least(dataset.manifest.target_behavior)
        return TrainingEvents(
            user=user,
            item=item,
            timestamp=timestamp,
            is_target=np.isin(behavior, wanted),
            manifest=dataset.manifest,
        )


def fit_baselines(
    names: Sequence[BaselineName], dataset: PreparedDataset, *, recent_days: float = 7.0
) -> list["PopularScorer | NeighbourScorer"]:
    """Fit baselines on the training part of a data set.

    Args:
        names: Which ones.
        dataset: The data set.
        recent_days: Window of ``popular_recent``, days before the end of training. Data without
            times, and leave-one-out (where every user's training ends elsewhere), take the last
            tenth of each user's training events.

    Returns:
        Scorers, in the order of the names.

    Raises:
        ValueError: If a name is unknown, ``recent_days`` is not above 0, or there are no training
            events.
    """
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        raise ValueError(f"baselines {unknown} are unknown; there are {list(BASELINES)}.")
    if not names:
        return []
    events = TrainingEvents.of(dataset)
    fitted: list[PopularScorer | NeighbourScorer] = []
    for name in names:
        if name == "popular":
            fitted.append(PopularScorer(popularity(events), name=name))
        elif name == "popular_recent":
            fitted.append(PopularScorer(recent_popularity(events, days=recent_days), name=name))
        elif name == "last_item":
            fitted.append(last_item_scorer(events))
        else:
            fitted.append(item_knn_scorer(events))
    return fitted


def popularity(events: TrainingEvents) -> Ints:
    """Training events of the asked kind of every item.

    Args:
        events: The training part.

    Returns:
        (N,) counts.

    Raises:
        ValueError: If there are no training events.
    """
    if not len(events.item):
        raise ValueError("The training part holds no events: baselines cannot be fitted.")
    return np.bincount(events.item[events.is_target], minlength=events.manifest.num_items)


def recent_popularity(
    events: TrainingEvents, *, days: float = 7.0, share: float = 0.1
) -> NDArray[np.float64]:
    """Events of every item in the last days of training; equal counts are ordered by all of it.

    Args:
        events: The training part.
        days: Length of the window before the end of training, above 0.
        share: Where there is no common clock, the last share of each user's training events
            (at least one) stands for the window, in 0…1.

    Returns:
        (N,) counts, plus a fraction below 1 from the overall popularity.

    Raises:
        ValueError: If ``days`` is not above 0, ``share`` is not in 0…1, or there are no training
            events.
    """
    if not days > 0:
        raise ValueError(f"recent_days ({days}) must be above 0.")
    if not 0 < share <= 1:
        raise ValueError(f"share ({share}) must be above 0 and at most 1.")
    overall = popularity(events)
    manifest = events.manifest
    if manifest.has_time and manifest.split.kind == "time":
        end = manifest.validation_time or int(events.timestamp.max()) + 1
        recent = events.timestamp >= end - days * DAY
    else:
        length = np.bincount(events.user)
        after = np.cumsum(length)[events.user] - 1 - np.arange(len(events.user))
        recent = after < np.maximum(1, np.floor(share * length))[events.user]
    counts = np.bincount(events.item[recent & events.is_target], minlength=manifest.num_items)
    ordered: NDArray[np.float64] = counts + overall / (overall.max() + 1.0)
    return ordered


def last_item_scorer(events: TrainingEvents) -> "NeighbourScorer":
    """How often each item came right after the user's last item.

    Args:
        events: The training part.

    Returns:
        A scorer that reads the last event only.

    Raises:
        ValueError: If there are no training events.
    """
    counts = popularity(events)
    follows = (events.user[1:] == events.user[:-1]) & events.is_target[1:]
    follows &= events.item[1:] != events.item[:-1]
    pairs = (events.item[:-1][follows], events.item[1:][follows])
    size = events.manifest.num_items
    graph = sp.coo_matrix((np.ones(len(pairs[0]), np.float32), pairs), (size, size)).tocsr()
    return NeighbourScorer(graph, counts, name="last_item", max_events=1)


def item_knn_scorer(
    events: TrainingEvents,
    *,
    num_neighbours: int = 200,
    window: int | None = 10,
    max_events: int = 20,
    half_life_events: float = 2.0,
) -> "NeighbourScorer":
    """Sum of the cosine similarities to the user's last items, later ones counting more.

    The defaults were the best of 40 settings on the validation parts of MovieLens 1M and of Amazon
    Beauty (leave-one-out); similarity over whole histories was worse on both.

    Args:
        events: The training part.
        num_neighbours: Neighbours kept of each item.
        window: Events two items of a history may be apart to count as neighbours; None = any.
        max_events: Events of the history that are read.
        half_life_events: An event this many back counts half.

    Returns:
        A scorer.

    Raises:
        ValueError: If there are no training events.
    """
    counts = popularity(events)
    graph = cooccurrence(
        events.user,
        events.item,
        num_items=events.manifest.num_items,
        kind="cosine",
        num_neighbours=num_neighbours,
        window=window,
    )
    return NeighbourScorer(
        graph, counts, name="item_knn", max_events=max_events, half_life_events=half_life_events
    )


class PopularScorer:
    """The same scores for everybody.

    Args:
        scores: Of each item, (N,).
        name: What reports call it.
    """

    heads = ("score",)

    def __init__(self, scores: NDArray[np.generic], *, name: str = "popular") -> None:
        self.name = name
        # Equal counts must stay equal and different ones different: float64 carries both.
        self._scores = torch.from_numpy(np.asarray(scores, dtype=np.float64))

    def score(self, batch: EvaluationBatch, start: int, stop: int) -> dict[str, Tensor]:
        """Score a block of items; see ``Scorer``."""
        return {"score": self._scores[start:stop].repeat(len(batch.target), 1)}

    def score_items(self, batch: EvaluationBatch, items: Tensor) -> dict[str, Tensor]:
        """Score one item a request; see ``TargetScorer``."""
        return {"score": self._scores[items]}


class NeighbourScorer:
    """Adds up the neighbours of the last items of a history.

    Args:
        graph: Row i = scores of the items that go with item i, (N, N).
        popularity: Training events of each item, (N,); orders what the graph leaves at 0.
        name: What reports call it.
        max_events: Events of the history that are read, the newest first.
        half_life_events: An event this many back counts half; None = all alike.
    """

    heads = ("score",)

    def __init__(
        self,
        graph: sp.csr_matrix,
        popularity: NDArray[np.generic],
        *,
        name: str,
        max_events: int,
        half_life_events: float | None = None,
    ) -> None:
        self.name = name
        self._graph = graph
        count = np.asarray(popularity, dtype=np.float64)
        smallest = float(graph.data.min()) if graph.nnz else 1.0
        decay = 1.0 if half_life_events is None else 0.5 ** (max_events / half_life_events)
        floor = min(FALLBACK, 0.5 * smallest * decay)
        self._fallback = torch.from_numpy(count / max(count.max(), 1.0) * floor)
        self._max_events = max_events
        self._half_life = half_life_events
        self._batch: EvaluationBatch | None = None
        self._scores: sp.csc_matrix | None = None

    def score(self, batch: EvaluationBatch, start: int, stop: int) -> dict[str, Tensor]:
        """Score a block of items; see ``Scorer``."""
        block = torch.from_numpy(self._sparse(batch)[:, start:stop].toarray(order="C"))
        return {"score": block.add_(self._fallback[start:stop])}

    def score_items(self, batch: EvaluationBatch, items: Tensor) -> dict[str, Tensor]:
        """Score one item a request; see ``TargetScorer``."""
        found = self._sparse(batch)[np.arange(len(items)), items.numpy().copy()]
        return {"score": torch.from_numpy(np.asarray(found)[0]) + self._fallback[items]}

    def _sparse(self, batch: EvaluationBatch) -> sp.csc_matrix:
        """Scores of the graph for a batch, (B, N), kept for its blocks."""
        if self._batch is not batch or self._scores is None:
            items, age = last_items(batch.context.history, batch, self._max_events)
            weight = np.ones(items.shape)
            if self._half_life is not None:
                weight = 0.5 ** (age / self._half_life)
            rows, columns = np.nonzero(items >= FIRST_ID)
            values = weight[rows, columns]
            shape = (len(items), self._graph.shape[0])
            reads = sp.csr_matrix((values, (rows, items[rows, columns])), shape)
            self._scores = (reads @ self._graph).astype(np.float64).tocsc()
            self._batch = batch
        return self._scores


def last_items(history: History, batch: EvaluationBatch, number: int) -> tuple[Ints, Ints]:
    """The newest events that each request may see.

    Args:
        history: The prefix of the batch.
        batch: One request a row.
        number: Events wanted.

    Returns:
        Internal ids (B, number) with 0 where a history is shorter, and how many events follow
        each, (B, number).
    """
    cut = batch.context.requests.cut[:, :1]
    visible = history.is_event & (torch.arange(history.item.shape[1]) < cut)
    age = visible.sum(dim=1, keepdim=True) - visible.cumsum(dim=1)
    rows, columns = torch.nonzero(visible & (age < number), as_tuple=True)
    items = torch.zeros(len(history.item), number, dtype=torch.int64)
    items[rows, age[rows, columns]] = history.item[rows, columns]
    return items.numpy(), np.broadcast_to(np.arange(number), items.shape).astype(np.int64)
