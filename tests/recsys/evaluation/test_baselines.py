from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from recsys.data.dataset import PreparedDataset
from recsys.evaluation.baselines import (
    BASELINES,
    DAY,
    NeighbourScorer,
    PopularScorer,
    TrainingEvents,
    fit_baselines,
    item_knn_scorer,
    last_item_scorer,
    last_items,
    popularity,
    recent_popularity,
)
from recsys.evaluation.run import evaluate
from recsys.schema import Manifest, SplitSpec

N = 8


def make_events(rows: list[list[int]], **manifest) -> TrainingEvents:
    """Each row the items of a user; times count up by a day over all events."""
    user = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    item = np.array([i for row in rows for i in row])
    return TrainingEvents(
        user=user,
        item=item,
        timestamp=np.arange(len(item)) * DAY,
        is_target=np.ones(len(item), dtype=bool),
        manifest=Manifest(num_items=N, num_trained_items=N - 2, **manifest),
    )


def test_popularity_counts_the_asked_kind_of_training_events() -> None:
    events = make_events([[2, 3], [3, 4]])
    assert popularity(events).tolist() == [0, 0, 1, 2, 1, 0, 0, 0]
    events.is_target[2] = False
    assert popularity(events).tolist() == [0, 0, 1, 1, 1, 0, 0, 0]


def test_recent_popularity_counts_the_last_days_and_orders_ties_by_all_days() -> None:
    events = make_events([[2, 3, 3], [4, 2]], has_time=True)
    found = recent_popularity(events, days=2)  # the day of event 3 and of event 4
    assert np.floor(found).tolist() == [0, 0, 1, 0, 1, 0, 0, 0]
    assert found[2] > found[4]  # both once lately, 2 more often before
    assert found[3] > found[5]


def test_the_window_ends_where_training_ends() -> None:
    events = make_events([[2, 3], [4, 2]], has_time=True, validation_time=4 * DAY)
    assert np.floor(recent_popularity(events, days=1)).tolist() == [0, 0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "manifest", [{"has_time": False}, {"split": SplitSpec(kind="leave_one_out")}]
)
def test_without_a_common_clock_the_last_share_of_each_user_is_recent(manifest) -> None:
    events = make_events([[2, 3, 4, 5], [6, 7]], **manifest)
    found = np.floor(recent_popularity(events, share=0.5))
    assert found.tolist() == [0, 0, 0, 0, 1, 1, 0, 1]


def test_equal_popularity_ties_against_the_target(make_batch, catalogue) -> None:
    batch = make_batch(torch.tensor([5]), torch.tensor([[2]]))
    scorer = PopularScorer(np.array([0, 0, 9, 4, 4, 4, 1, 0]))
    table = evaluate([scorer], [batch], catalogue(N, N - 2))
    assert table.ranks["popular", "score"].tolist() == [3]


def test_large_counts_that_differ_by_one_do_not_tie(make_batch, catalogue) -> None:
    batch = make_batch(torch.tensor([5]), torch.tensor([[2]]))
    scores = np.zeros(N)
    scores[4:6] = [2**30, 2**30 + 1]
    table = evaluate([PopularScorer(scores)], [batch], catalogue(N, N - 2))
    assert table.ranks["popular", "score"].tolist() == [1]


def test_last_item_counts_what_came_next_and_falls_back_to_popularity(make_batch) -> None:
    events = make_events([[2, 3, 4], [2, 3], [2, 5], [6, 6, 6]])
    scorer = last_item_scorer(events)
    found = scorer.score(make_batch(torch.tensor([3]), torch.tensor([[4, 2]])), 0, N)["score"][0]
    np.testing.assert_allclose(found[:6].numpy(), [0, 0, 0, 2, 0, 1], atol=1e-5)
    assert found[6] > found[4] > found[7] >= 0  # popularity orders what never followed
    assert found[6] < 1e-5  # 6 after 6 is no transition


def test_only_targets_of_the_asked_kind_count_as_next(make_batch) -> None:
    events = make_events([[2, 3], [2, 5]])
    events.is_target[1] = False
    found = last_item_scorer(events).score(
        make_batch(torch.tensor([3]), torch.tensor([[2]])), 0, N
    )["score"][0]
    assert found[5] > 0.9
    assert found[3] < 1e-5


def test_item_knn_keeps_to_the_colour_of_a_checkerboard(make_batch, catalogue) -> None:
    # even users took even items, odd users odd ones: what is left of one colour must come first
    rows = [[2, 4, 6], [3, 5, 7], [2, 4], [3, 5], [4, 6], [5, 7], [6, 2], [7, 3]]
    scorer = item_knn_scorer(make_events(rows))
    batch = make_batch(torch.tensor([6, 7]), torch.tensor([[2, 4], [3, 5]]))
    table = evaluate([scorer], [batch], catalogue(N, N - 2))
    assert table.ranks["item_knn", "score"].tolist() == [1, 1]
    scores = scorer.score(batch, 0, N)["score"]
    assert scores[0, 6] > 0.1
    assert scores[0, [3, 5, 7]].max() < 1e-5


def test_an_event_counts_half_a_half_life_later(make_batch) -> None:
    graph = sp.csr_matrix((np.ones(2, np.float32), ([2, 3], [4, 5])), (N, N))
    scorer = NeighbourScorer(graph, np.zeros(N), name="knn", max_events=4, half_life_events=1.0)
    batch = make_batch(torch.tensor([4]), torch.tensor([[2, 3]]))
    found = scorer.score(batch, 0, N)["score"][0]
    assert found.tolist() == [0, 0, 0, 0, 0.5, 1, 0, 0]


def test_a_block_of_items_equals_that_part_of_the_whole(make_batch) -> None:
    scorer = item_knn_scorer(make_events([[2, 4, 6], [3, 5, 7], [2, 3]]))
    batch = make_batch(torch.tensor([6, 7]), torch.tensor([[2, 4], [3, 0]]))
    whole = scorer.score(batch, 0, N)["score"]
    assert torch.equal(scorer.score(batch, 3, 6)["score"], whole[:, 3:6])
    items = torch.tensor([5, 2])
    assert torch.equal(scorer.score_items(batch, items)["score"], whole[[0, 1], items])


def test_a_user_without_history_gets_popular_items(make_batch) -> None:
    scorer = item_knn_scorer(make_events([[2, 3], [3, 4]]))
    found = scorer.score(make_batch(torch.tensor([3]), torch.tensor([[0]])), 2, N)["score"][0]
    assert found.argmax() == 1  # item 3


def test_only_events_before_the_cut_are_read(make_batch) -> None:
    batch = make_batch(torch.tensor([3]), torch.tensor([[4, 5, 6]]))
    batch.context.requests.cut[0, 0] = 2
    items, age = last_items(batch.context.history, batch, 3)
    assert items.tolist() == [[5, 4, 0]]
    assert age.tolist() == [[0, 1, 2]]


def test_target_codes_hold_the_target_and_stronger_behaviors() -> None:
    manifest = Manifest(
        behaviors=("view", "click", "order"), funnel=("click", "order"), target_behavior="click"
    )
    assert manifest.codes_at_least(manifest.target_behavior) == (4, 5)
    assert Manifest(behaviors=("view",)).codes_at_least("view") == (3,)
    assert Manifest(behaviors=("view", "click")).codes_at_least(None) == (3, 4)


def test_training_events_of_a_data_set_are_those_before_the_split(prepared: Path) -> None:
    dataset = PreparedDataset(prepared)
    events = TrainingEvents.of(dataset)
    expected, user = [], 0
    for bucket in dataset.buckets:
        for row in range(bucket.num_users):
            items = bucket.events["item"].row(row)[: int(bucket.train_end[row])]
            expected += [(user, int(item)) for item in items]
            user += 1
    assert list(zip(events.user.tolist(), events.item.tolist(), strict=True)) == expected
    assert events.timestamp.max() < (dataset.manifest.validation_time or 0)
    counts = dataset.catalogue.train_count.numpy()
    assert popularity(events).tolist() == counts.tolist()


def test_every_baseline_can_be_fitted(prepared: Path) -> None:
    dataset = PreparedDataset(prepared)
    assert [scorer.name for scorer in fit_baselines(BASELINES, dataset)] == list(BASELINES)
    assert fit_baselines((), dataset) == []


def test_wrong_arguments_are_refused(prepared: Path) -> None:
    with pytest.raises(ValueError, match=r"baselines \['best'\] are unknown"):
        fit_baselines(("best",), PreparedDataset(prepared))
    events = make_events([[2, 3]])
    with pytest.raises(ValueError, match=r"recent_days \(0\)"):
        recent_popularity(events, days=0)
    with pytest.raises(ValueError, match=r"share \(2\)"):
        recent_popularity(events, share=2)
    with pytest.raises(ValueError, match="holds no events"):
        popularity(make_events([[]]))
