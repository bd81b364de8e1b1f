import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.batch import EvaluationBatch
from recsys.evaluation.run import block_top_k, evaluate
from recsys.types import UNKNOWN

N, TRAINED = 23, 18


class TableScorer:
    """Scores read from a matrix by the user's index; two heads."""

    name = "table"
    heads = ("first", "second")

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def score(self, batch: EvaluationBatch, start: int, stop: int) -> dict[str, Tensor]:
        block = self.scores[batch.user_index, start:stop]
        return {"first": block.clone(), "second": -block}


class GuessingScorer(TableScorer):
    """Also scores single items, a little wrong, as another matrix product might."""

    def score_items(self, batch: EvaluationBatch, items: Tensor) -> dict[str, Tensor]:
        found = self.scores[batch.user_index, items]
        wrong = torch.where(batch.user_index % 2 == 0, found, found + 1e-6)
        return {"first": wrong, "second": -wrong}


def random_case(seed: int, num_users: int = 17) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(-4, 5, (num_users, N), generator=g).float()  # many ties
    target = torch.randint(1, N, (num_users,), generator=g)  # 1 = UNKNOWN
    seen = torch.randint(0, N, (num_users, 6), generator=g)
    seen = torch.where(torch.rand(seen.shape, generator=g) < 0.2, 0, seen)
    seen[0, 1:3] = seen[0, 0]  # an item seen three times
    target[0] = 5
    seen[1, 0] = target[1] = 7  # a target that was seen
    return scores, target, seen


def batches(make_batch, target: Tensor, seen: Tensor, size: int) -> Iterator[EvaluationBatch]:
    index = torch.arange(len(target))
    for start in range(0, len(target), size):
        part = slice(start, start + size)
        yield make_batch(target[part], seen[part], index[part])


@pytest.mark.parametrize("scorer_kind", [TableScorer, GuessingScorer])
@pytest.mark.parametrize("item_block", [1, 4, 7, 1000])
@pytest.mark.parametrize("filter_seen", [True, False])
@pytest.mark.parametrize("candidates", ["trained", "all"])
def test_streamed_counting_equals_ranking_the_full_matrix(
    scorer_kind, item_block, filter_seen, candidates, make_batch, catalogue, twin_ranks
) -> None:
    scores, target, seen = random_case(seed=item_block)
    stop = N if candidates == "all" else 2 + TRAINED
    table = evaluate(
        [scorer_kind(scores)],
        batches(make_batch, target, seen, 5),
        catalogue(),
        filter_seen=filter_seen,
        candidates=candidates,
        item_block=item_block,
    )
    for head, sign in (("first", 1), ("second", -1)):
        expected = twin_ranks(sign * scores, target, seen, filter_seen, stop)
        assert table.ranks["table", head].tolist() == expected
    assert table.num_candidates == stop - 2
    assert table.answers == (("table", "second"),)


def test_batch_size_changes_nothing(make_batch, catalogue) -> None:
    scores, target, seen = random_case(seed=3)
    one, many = (
        evaluate([TableScorer(scores)], batches(make_batch, target, seen, size), catalogue())
        for size in (1, 17)
    )
    assert one.ranks["table", "first"].tolist() == many.ranks["table", "first"].tolist()
    np.testing.assert_allclose(
        one.lists["table", "first"].novelty, many.lists["table", "first"].novelty
    )


def test_a_scorer_that_likes_everything_alike_ranks_every_target_last(
    make_batch, catalogue
) -> None:
    batch = make_batch(torch.tensor([5]), torch.tensor([[2, 3]]))
    table = evaluate([TableScorer(torch.zeros(1, N))], [batch], catalogue())
    assert table.ranks["table", "first"].tolist() == [TRAINED - 2]


def test_a_target_that_was_seen_is_a_miss_only_where_seen_items_are_filtered(
    make_batch, catalogue
) -> None:
    scores = torch.zeros(1, N)
    scores[0, 5] = 1
    batch = make_batch(torch.tensor([5]), torch.tensor([[5, 3]]))
    filtered = evaluate([TableScorer(scores)], [batch], catalogue())
    kept = evaluate([TableScorer(scores)], [batch], catalogue(), filter_seen=False)
    assert filtered.ranks["table", "first"].tolist() == [math.inf]
    assert kept.ranks["table", "first"].tolist() == [1]
    assert filtered.target_seen.tolist() == kept.target_seen.tolist() == [True]


def test_unknown_and_untrained_targets_are_misses_that_stay_in_the_denominator(
    make_batch, catalogue
) -> None:
    batch = make_batch(torch.tensor([UNKNOWN, N - 1, 4]), torch.tensor([[2], [2], [2]]))
    table = evaluate([TableScorer(torch.arange(N).float().expand(3, N))], [batch], catalogue())
    assert table.target_known.tolist() == [False, False, True]
    assert table.ranks["table", "second"].tolist() == [math.inf, math.inf, 2]
    assert table.metrics(("table", "second"), [10])["recall@10"].mean() == pytest.approx(1 / 3)


def test_an_item_scored_minus_infinity_is_never_recommended(make_batch, catalogue) -> None:
    scores = torch.zeros(1, N)
    scores[0, 4:] = -torch.inf
    batch = make_batch(torch.tensor([6]), torch.tensor([[2]]))
    table = evaluate([TableScorer(scores)], [batch], catalogue())
    assert table.ranks["table", "first"].tolist() == [math.inf]
    assert table.lists["table", "first"].counts.sum() == 1  # only item 3 is left


@pytest.mark.parametrize("item_block", [3, 100])
def test_lists_hold_the_best_unseen_candidates(item_block, make_batch, catalogue) -> None:
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(9, N, generator=g)
    seen = torch.randint(0, N, (9, 4), generator=g)
    batch = make_batch(torch.full((9,), 5), seen)
    table = evaluate([TableScorer(scores)], [batch], catalogue(), item_block=item_block, list_k=3)
    masked = scores.clone()
    masked[:, :2] = masked[:, 2 + TRAINED :] = -1
    masked.scatter_(1, seen, -1)
    best = masked.topk(3, dim=1).indices
    lists = table.lists["table", "first"]
    assert lists.counts.tolist() == torch.bincount(best.flatten(), minlength=N).tolist()
    popularity = torch.log1p(catalogue().train_count.double())[best].mean(dim=1)
    np.testing.assert_allclose(lists.popularity, popularity.numpy())
    found = table.list_metrics(("table", "first"))
    assert found["coverage@3"] == pytest.approx(len(best.unique()) / TRAINED)
    assert set(found) == {
        f"{name}@3"
        for name in (
            "coverage",
            "gini",
            "popularity",
            "popularity_bias",
            "novelty",
            "diversity",
        )
    }


def test_popularity_bias_compares_with_the_history(make_batch, catalogue) -> None:
    counts = catalogue().train_count
    scores = torch.zeros(1, N)
    scores[0, 9] = 1
    batch = make_batch(torch.tensor([5]), torch.tensor([[2, 2, 3]]))
    table = evaluate([TableScorer(scores)], [batch], catalogue(), list_k=1)
    history = (2 * math.log1p(counts[2]) + math.log1p(counts[3])) / 3
    bias = table.list_metrics(("table", "first"))["popularity_bias@1"]
    assert bias == pytest.approx(math.log1p(counts[9]) - history)


@pytest.mark.parametrize(("rows", "columns", "k"), [(5, 1000, 3), (3, 997, 10), (4, 12, 10)])
def test_block_top_k_equals_torch_topk(rows, columns, k) -> None:
    block = torch.rand(rows, columns, generator=torch.Generator().manual_seed(k))
    scores, index = block_top_k(block, k)
    expected = block.topk(min(k, columns), dim=1)
    assert torch.equal(scores, expected.values)
    assert torch.equal(index, expected.indices)


def test_block_top_k_finds_equal_best_scores_within_one_strip() -> None:
    block = torch.zeros(1, 400)
    block[0, 0::40] = 1.0  # ten winners in one strip of width 40
    scores, index = block_top_k(block, 10)
    assert scores.tolist() == [[1.0] * 10]
    assert sorted(index[0].tolist()) == list(range(0, 400, 40))


def test_nan_scores_stop_the_evaluation(make_batch, catalogue) -> None:
    scores = torch.zeros(2, N)
    scores[1, 6] = math.nan
    batch = make_batch(torch.tensor([5, 5]), torch.tensor([[2], [6]]))
    with pytest.raises(ValueError, match=r"'table', head 'first' returned NaN for 1 of 2"):
        evaluate([TableScorer(scores)], [batch], catalogue(), list_k=0)


def test_wrong_arguments_are_refused(make_batch, catalogue) -> None:
    batch = make_batch(torch.tensor([5]), torch.tensor([[2]]))
    scorer = TableScorer(torch.zeros(1, N))
    with pytest.raises(ValueError, match=r"unique names, not \['table', 'table'\]"):
        evaluate([scorer, scorer], [batch], catalogue())
    with pytest.raises(ValueError, match=r"item_block \(0\)"):
        evaluate([scorer], [batch], catalogue(), item_block=0)
    with pytest.raises(ValueError, match=r"k \(0, 5\)"):
        evaluate([scorer], [batch], catalogue(), k=(0, 5))
    with pytest.raises(ValueError, match="no requests"):
        evaluate([scorer], [], catalogue())
    with pytest.raises(ValueError, match="0 trained items"):
        evaluate([scorer], [batch], catalogue(num_trained=0))


def test_a_scorer_that_breaks_its_contract_is_named(make_batch, catalogue) -> None:
    batch = make_batch(torch.tensor([5]), torch.tensor([[2]]))
    scorer = TableScorer(torch.zeros(1, N))
    scorer.heads = ("other",)
    with pytest.raises(ValueError, match=r"'table' declares the heads \('other',\)"):
        evaluate([scorer], [batch], catalogue())
    with pytest.raises(ValueError, match=r"of shape \(1, 18\), not torch.int64"):
        evaluate([TableScorer(torch.zeros(1, N, dtype=torch.int64))], [batch], catalogue())


def test_diversity_is_unknown_where_all_items_are_of_one_category(make_batch, catalogue) -> None:
    items = catalogue()
    items.coarse[:] = 1
    batch = make_batch(torch.tensor([5]), torch.tensor([[2]]))
    table = evaluate([TableScorer(torch.zeros(1, N))], [batch], items)
    assert np.isnan(table.lists["table", "first"].diversity).all()
