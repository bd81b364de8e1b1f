"""Features worked by hand on one history, and trees that find what decides."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import User, write_dataset
from torch import Tensor

from recsys.batch import CandidateSet, ContextBatch, History, Requests
from recsys.context.impressions import RankingBatch
from recsys.data.dataset import Catalogue
from recsys.evaluation.boosted import CandidateFeatures, fit_boosted
from recsys.metrics.calibration import auc
from recsys.schema import Feature
from recsys.types import BOUNDARY


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    """Items 2 … 6; brands 2, 2, 3, 3 and unknown; coarse codes 2, 3, 4, 2, 3."""
    return write_dataset(
        tmp_path,
        [User(item=[2, 2, 2, 3], train_end=4)],
        num_trained=5,
        item_features=(
            Feature(name="brand", kind="categorical", rows=4),
            Feature(name="price", kind="numeric"),
            Feature(name="title", kind="text", width=2),
        ),
        item_values={
            "brand": [0, 1, 2, 2, 3, 3, 1],
            "price": [0.0, 0, 1.5, -1, 2, 0, 0],
            "title": np.zeros((7, 2)),
        },
    ).catalogue


def context(
    item: list[list[int]],
    candidates: list[list[int]],
    *,
    behavior: list[list[int]] | None = None,
    cut: list[int] | None = None,
) -> ContextBatch:
    """Events 100 s apart from 0 on, asked at 1000 s."""
    items = torch.tensor(item)
    history = History(
        item=items,
        behavior=torch.full_like(items, 3) if behavior is None else torch.tensor(behavior),
        timestamp=100 * torch.arange(items.shape[1]).expand_as(items),
        gap=torch.zeros_like(items),
        block=torch.ones_like(items),
        lengths=(items != 0).sum(dim=1),
    )
    rows = torch.ones(len(items), 1, dtype=torch.long)
    requests = Requests(
        cut=history.lengths[:, None] if cut is None else torch.tensor(cut)[:, None],
        is_real=rows == 1,
        timestamp=1000 * rows,
        gap=7 * rows,
        situation={"hour": 5 * rows},
        candidates=CandidateSet(torch.tensor(candidates)[:, None, None]),
    )
    return ContextBatch(history, requests, {"age": torch.full((len(items),), 0.5)})


def columns(features: CandidateFeatures, batch: ContextBatch) -> dict[str, list[float]]:
    names, rows = features.read(batch)
    assert rows.dtype == np.float32
    return {name: rows[:, i].tolist() for i, name in enumerate(names)}


def test_features_are_worked_by_hand(catalogue: Catalogue) -> None:
    features = CandidateFeatures(catalogue, behaviors=(3, 4))
    # Of 2, 5, 2, 4, 3 the request sees four events: its own cut hides the 3.
    batch = context([[2, 5, 2, 4, 3]], [[2, 3, 6, 0]], behavior=[[3, 3, 4, 3, 3]], cut=[4])
    found = columns(features, batch)
    nan = math.nan
    expected = {
        "popularity": [math.log(4), math.log(2), 0, 0],
        "item.coarse": [2, 3, 3, 0],
        "item.brand": [2, 2, 1, 0],
        "item.price": [1.5, -1, 0, 0],
        "times.item": [2, 0, 0, 0],
        "since.item": [800, nan, nan, nan],
        "times.item.3": [1, 0, 0, 0],
        "times.item.4": [1, 0, 0, 0],
        "times.coarse": [3, 0, 0, 0],  # 2, 5 and 2 are of coarse code 2
        "since.coarse": [800, nan, nan, nan],
        "times.brand": [2, 2, 0, 0],  # an unknown brand is like no other
        "since.brand": [800, 800, nan, nan],
        "history_length": [4] * 4,
        "gap": [7] * 4,
        "situation.hour": [5] * 4,
        "user.age": [0.5] * 4,
    }
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, nan_ok=True), name
    assert features.categorical == ("item.coarse", "item.brand")


def test_boundaries_unknown_items_and_later_events_count_for_nothing(catalogue: Catalogue) -> None:
    features = CandidateFeatures(catalogue, behaviors=(3,))
    seen = context([[2, 0, 1, 3]], [[2, 1]], behavior=[[3, BOUNDARY, 3, 3]], cut=[3])
    found = columns(features, seen)
    assert found["history_length"] == [2, 2]  # 2 and the unknown item
    assert found["times.item"] == [1, 0]
    assert "times.item.3" not in found  # one behavior tells nothing
    later = context([[2, 0, 1, 2]], [[2, 1]], behavior=[[3, BOUNDARY, 3, 3]], cut=[3])
    assert np.array_equal(features.read(later)[1], features.read(seen)[1], equal_nan=True)


class Descending:
    name, reads_group = "retrieval", False

    def score(self, context: ContextBatch) -> Tensor:
        assert context.requests.candidates is not None
        return -context.requests.candidates.item.float()[..., None]


def test_the_retrievals_score_and_rank_are_told(catalogue: Catalogue) -> None:
    features = CandidateFeatures(catalogue, behaviors=(3,), retrieval=Descending())
    found = columns(features, context([[2]], [[4, 0, 3, 6]]))
    assert found["retrieval.score"] == [-4, 0, -3, -6]
    assert [found["retrieval.rank"][i] for i in (0, 2, 3)] == [1, 0, 2]


def lists(seed: int) -> RankingBatch:
    """60 requests, 4 candidates each; what the history holds is clicked, 3 times of 4."""
    random = np.random.default_rng(seed)
    history = random.integers(2, 7, (60, 3))
    candidates = np.array([random.permutation(np.arange(2, 7))[:4] for _ in range(60)])
    held = (candidates[:, :, None] == history[:, None]).any(axis=2)
    clicked = held & (random.random(held.shape) < 0.75)
    batch = context(history.tolist(), candidates.tolist())
    users = torch.arange(60)
    return RankingBatch(batch, torch.from_numpy(clicked.astype(int))[:, None, None], users, users)


def test_trees_find_what_decides_and_a_task_without_positives_gets_a_constant(
    catalogue: Catalogue,
) -> None:
    features = CandidateFeatures(catalogue, behaviors=(3,))
    scorer = fit_boosted([lists(0), lists(1)], features, num_tasks=2)
    tested = lists(2)
    logits = scorer.score(tested.context)
    assert logits.shape == (60, 1, 1, 4, 2)
    assert auc(tested.level.flatten() > 0, logits[..., 0].flatten()) > 0.8
    assert logits[..., 1].unique().tolist() == pytest.approx([math.log(1 / 481)])
    again = fit_boosted([lists(0), lists(1)], features, num_tasks=2).score(tested.context)
    assert torch.equal(again, logits)


def test_no_lists_are_refused(catalogue: Catalogue) -> None:
    with pytest.raises(ValueError, match="no lists to fit the boosted baseline on"):
        fit_boosted([], CandidateFeatures(catalogue, behaviors=(3,)), num_tasks=1)
