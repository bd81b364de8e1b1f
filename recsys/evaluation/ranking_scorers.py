"""What candidate lists are scored by: a model's ranking, its retrieval alone, popularity."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from recsys.batch import CandidateSet, ContextBatch
from recsys.context.impressions import RankingBatch
from recsys.evaluation.ranking import ranking_metrics_by_user, score_lists
from recsys.evaluation.run import CatalogueLike
from recsys.ranking.calibrate import Calibration


class RankingModel(Protocol):
    """A model of both stages."""

    def item_vectors(self) -> Tensor:
        """(N, D) float32."""
        ...

    def read(self, context: ContextBatch, items: Tensor | None = None) -> Any:
        """Read requests once, for both stages."""
        ...

    def answers(self, context: ContextBatch, items: Tensor | None = None) -> Tensor:
        """The answering query vectors, (B, Q, D)."""
        ...

    def rank_of(self, state: Any, candidates: CandidateSet) -> Tensor:
        """Logits by task, (B, Q, G, C, S)."""
        ...


def _candidates(context: ContextBatch) -> CandidateSet:
    assert context.requests.candidates is not None
    return context.requests.candidates


class ModelRanking:
    """The ranking stage of a model.

    Args:
        model: In evaluation mode, on ``device``.
        name: What reports call it.
        device: Where it is.
    """

    reads_group = True

    def __init__(
        self, model: RankingModel, *, name: str, device: torch.device | str = "cpu"
    ) -> None:
        self.name = name
        self._model, self._device = model, device
        self._items = model.item_vectors()

    def score(self, context: ContextBatch) -> Tensor:
        """Score candidates; see ``CandidateScorer``."""
        context = context.to(self._device)
        state = self._model.read(context, self._items)
        return self._model.rank_of(state, _candidates(context))


def gauc_of(
    model: RankingModel, lists: Iterable[RankingBatch], tasks: Sequence[str], *, group_size: int
) -> dict[str, float]:
    """How well a model orders lists while it is being trained.

    Args:
        model: In evaluation mode.
        lists: Those to order.
        tasks: Names of its tasks, weakest first.
        group_size: C, candidates ranked together.

    Returns:
        ``rank/<task>/gauc`` of every task of which the lists hold both outcomes.
    """
    scorer = ModelRanking(model, name="model")
    table = score_lists([scorer], lists, tasks, group_size=group_size)
    logits = table.logits["model"]
    order = logits[:, -1].astype(np.float64)
    found = ranking_metrics_by_user(table, logits, Calibration.identity(tasks), order)
    return {f"rank/{k}": float(v.mean()) for k, v in found.items() if k.endswith("/gauc")}


class RetrievalOrder:
    """The inner product of the answering query and the item: the first stage's own order.

    Args:
        model: In evaluation mode, on ``device``.
        num_tasks: S; every task gets the same logit.
        name: What reports call it.
        device: Where the model is.
    """

    reads_group = False

    def __init__(
        self,
        model: RankingModel,
        *,
        num_tasks: int,
        name: str = "retrieval",
        device: torch.device | str = "cpu",
    ) -> None:
        self.name = name
        self._model, self._num_tasks, self._device = model, num_tasks, device
        self._items = model.item_vectors()

    def score(self, context: ContextBatch) -> Tensor:
        """Score candidates; see ``CandidateScorer``."""
        context = context.to(self._device)
        query = self._model.answers(context, self._items)[:, :, None, None]
        found = (query * self._items[_candidates(context).item]).sum(dim=-1)
        return found[..., None].expand(*found.shape, self._num_tasks)


class PopularityOrder:
    """The natural logarithm of 1 + an item's training events.

    Args:
        catalogue: The items.
        num_tasks: S; every task gets the same logit.
        name: What reports call it.
    """

    reads_group = False

    def __init__(self, catalogue: CatalogueLike, *, num_tasks: int, name: str = "popular") -> None:
        self.name = name
        self._score = catalogue.train_count.double().log1p()
        self._num_tasks = num_tasks

    def score(self, context: ContextBatch) -> Tensor:
        """Score candidates; see ``CandidateScorer``."""
        found = self._score[_candidates(context).item]
        return found[..., None].expand(*found.shape, self._num_tasks)
