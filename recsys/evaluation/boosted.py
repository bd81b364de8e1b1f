"""The baseline a ranking must beat: gradient-boosted trees on features an engineer would write.

They are told what the model is told: the retrieval's score and rank, popularity, what the item is,
how often and how lately the history holds the item and its like, who asks and when. Everything is
worked out of the batch itself, which holds events before the request only; display positions are
left out. One classifier a task; how many trees is chosen on requests held back from the fit.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor

from recsys.batch import CandidateSet, ContextBatch
from recsys.context.impressions import RankingBatch
from recsys.data.dataset import Catalogue
from recsys.evaluation.ranking import CandidateScorer
from recsys.metrics.calibration import log_loss
from recsys.types import FIRST_ID, PAD

Floats = NDArray[np.float64]
Features = NDArray[np.float32]

MAX_CATEGORIES = 254
"""The trees' limit; columns of more values are read as numbers."""
MAX_TREES = 300
HELD_BACK = 5
"""Every so many-th request tells how many trees are enough."""


class CandidateFeatures:
    """Turns the candidates of a batch into rows of numbers.

    Args:
        catalogue: The items.
        behaviors: Codes of the behaviors told apart in counts.
        retrieval: Scores candidates as the first stage does; None leaves its score out.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        behaviors: Sequence[int],
        retrieval: CandidateScorer | None = None,
    ) -> None:
        self._behaviors = tuple(behaviors) if len(behaviors) > 1 else ()
        self._retrieval = retrieval
        self._popularity = catalogue.train_count.double().log1p().float()
        kinds = {feature.name: feature for feature in catalogue.features}
        codes = {
            name: values
            for name, values in catalogue.values.items()
            if kinds[name].kind == "categorical"
        }
        self._numbers = {
            name: values
            for name, values in catalogue.values.items()
            if kinds[name].kind == "numeric"
        }
        self._codes = {"coarse": catalogue.coarse} | codes
        self.categorical = tuple(
            f"item.{name}"
            for name, values in self._codes.items()
            if 0 < int(values.max()) <= MAX_CATEGORIES
        )
        """Columns whose numbers are names."""

    def read(self, context: ContextBatch) -> tuple[tuple[str, ...], Features]:
        """Work the features out.

        Args:
            context: One request a row, with candidates (B, 1, G, C).

        Returns:
            Names, and (B · G · C, F) float32; NaN = unknown, such as the time since an item that
            the history does not hold.
        """
        item = _candidates(context).item.flatten(1)
        columns = self._of_items(item) | self._of_history(context, item)
        columns |= self._of_retrieval(context, item)
        columns |= {name: v[:, None].expand_as(item) for name, v in _of_request(context).items()}
        stacked = torch.stack([values.float() for values in columns.values()], dim=-1)
        return tuple(columns), stacked.flatten(0, 1).numpy()

    def _of_items(self, item: Tensor) -> dict[str, Tensor]:
        columns = {"popularity": self._popularity}
        columns |= {f"item.{name}": values for name, values in self._codes.items()}
        columns |= {f"item.{name}": values for name, values in self._numbers.items()}
        return {name: values[item] for name, values in columns.items()}

    def _of_history(self, context: ContextBatch, item: Tensor) -> dict[str, Tensor]:
        """How often, and how long ago last, the history holds the item and its like."""
        history, requests = context.history, context.requests
        place = torch.arange(history.item.shape[1], dtype=torch.int32)
        visible = history.is_event & (place < requests.cut[:, :1])
        age = requests.timestamp[:, :1] - history.timestamp
        found: dict[str, Tensor] = {}
        for name, codes in {"item": torch.arange(len(self._popularity)), **self._codes}.items():
            code = codes[item]
            same = code[:, :, None] == codes[history.item][:, None, :]
            same &= visible[:, None, :] & (code >= FIRST_ID)[:, :, None]
            found[f"times.{name}"] = same.sum(dim=2)
            last = torch.where(same, place, -1).amax(dim=2).long()
            since = age.gather(1, last.clamp(min=0)).float()
            found[f"since.{name}"] = torch.where(last >= 0, since, torch.nan)
            if name == "item":
                for behavior in self._behaviors:
                    done = (history.behavior == behavior)[:, None, :]
                    found[f"times.item.{behavior}"] = (same & done).sum(dim=2)
        return found

    def _of_retrieval(self, context: ContextBatch, item: Tensor) -> dict[str, Tensor]:
        if self._retrieval is None:
            return {}
        score = self._retrieval.score(context)[..., 0].flatten(1).cpu()
        order = score.masked_fill(item == PAD, -torch.inf).argsort(dim=1, descending=True)
        return {"retrieval.score": score, "retrieval.rank": order.argsort(dim=1)}


def _of_request(context: ContextBatch) -> dict[str, Tensor]:
    """Who asks and when, (B,) each."""
    requests = context.requests
    place = torch.arange(context.history.item.shape[1])
    visible = context.history.is_event & (place < requests.cut[:, :1])
    return {
        "history_length": visible.sum(dim=1),
        "gap": requests.gap[:, 0],
        **{f"situation.{name}": values[:, 0] for name, values in requests.situation.items()},
        **{f"user.{name}": values for name, values in context.user.items() if values.dim() == 1},
    }


def _candidates(context: ContextBatch) -> CandidateSet:
    assert context.requests.candidates is not None
    return context.requests.candidates


class BoostedOrder:
    """Gradient-boosted trees; made by ``fit_boosted``."""

    reads_group = False

    def __init__(
        self,
        features: CandidateFeatures,
        models: Sequence[HistGradientBoostingClassifier | float],
        *,
        name: str = "boosted",
    ) -> None:
        self.name = name
        self._features, self._models = features, models

    def score(self, context: ContextBatch) -> Tensor:
        """Score candidates; see ``CandidateScorer``."""
        item = _candidates(context).item
        _, rows = self._features.read(context)
        real = (item != PAD).flatten().numpy()
        logits = np.zeros((len(rows), len(self._models)), dtype=np.float32)
        for task, model in enumerate(self._models):
            if isinstance(model, float):
                logits[:, task] = model
            else:
                logits[real, task] = model.decision_function(rows[real])
        return torch.from_numpy(logits).view(*item.shape, len(self._models))


def fit_boosted(
    batches: Iterable[RankingBatch],
    features: CandidateFeatures,
    *,
    num_tasks: int,
    seed: int = 0,
) -> BoostedOrder:
    """Fit one classifier a task.

    Args:
        batches: Lists, none of which is tested later.
        features: What is told of candidates.
        num_tasks: S.
        seed: Of the trees.

    Returns:
        The scorer. A task whose labels are all alike gets a constant.

    Raises:
        ValueError: If there are no lists.
    """
    parts: list[tuple[Features, NDArray[np.int64], NDArray[np.int64]]] = []
    names: tuple[str, ...] = ()
    for batch in batches:
        names, rows = features.read(batch.context)
        item = batch.candidates.item
        real = (item != PAD).flatten().numpy()
        request = batch.request[:, None].expand(len(item), item[0].numel()).flatten().numpy()
        parts.append((rows[real], batch.level.flatten().numpy()[real], request[real]))
    if not parts:
        raise ValueError("There are no lists to fit the boosted baseline on; leave it out.")
    rows, level, request = (np.concatenate(column) for column in zip(*parts, strict=True))
    held = np.unique(request, return_inverse=True)[1] % HELD_BACK == HELD_BACK - 1
    categorical = [name in features.categorical for name in names]
    models = [_fit(rows, level > s, held, categorical, seed) for s in range(num_tasks)]
    return BoostedOrder(features, models)


def _fit(
    rows: Features,
    labels: NDArray[np.bool_],
    held: NDArray[np.bool_],
    categorical: list[bool],
    seed: int,
) -> HistGradientBoostingClassifier | float:
    if labels.all() or not labels.any():
        return float(np.log((labels.sum() + 1) / ((~labels).sum() + 1)))

    def classifier(trees: int) -> HistGradientBoostingClassifier:
        return HistGradientBoostingClassifier(
            max_iter=trees,
            learning_rate=0.05,
            categorical_features=categorical,
            early_stopping=False,  # scikit-learn would hold back rows, not requests
            random_state=seed,
        )

    trees = MAX_TREES
    fitted, told = labels[~held], labels[held]
    if len(told) and fitted.any() and not fitted.all():
        trial = classifier(MAX_TREES).fit(rows[~held], fitted)
        losses = [log_loss(told, p[:, 1]) for p in trial.staged_predict_proba(rows[held])]
        trees = int(np.argmin(losses)) + 1
    return classifier(trees).fit(rows, labels)
