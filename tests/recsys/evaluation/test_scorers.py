import pytest
import torch
from torch import Tensor

from recsys.batch import ContextBatch
from recsys.evaluation.run import evaluate
from recsys.evaluation.scorers import ModelScorer

N, TRAINED = 23, 18


class DotModel:
    """Queries and items drawn once; the user's index picks the query."""

    def __init__(self, width: int = 8, heads: int = 3, num_items: int = N) -> None:
        g = torch.Generator().manual_seed(1)
        self.vectors = torch.randn(num_items, width, generator=g)
        self.table = torch.randn(heads, 50, width, generator=g)
        self.training = False
        self.calls = 0

    def item_vectors(self) -> Tensor:
        return self.vectors

    def queries(self, context: ContextBatch, items: Tensor | None = None) -> dict[str, Tensor]:
        self.calls += 1
        who = context.history.item[:, 0]
        return {f"step{i}": q[who][:, None] for i, q in enumerate(self.table)}


@pytest.mark.parametrize("item_block", [4, 1000])
def test_model_scorer_ranks_like_the_products_themselves(
    item_block, make_batch, catalogue, twin_ranks
) -> None:
    model = DotModel()
    target, seen = torch.arange(2, 12), torch.arange(3, 13)[:, None]
    batch = make_batch(target, seen)
    table = evaluate([ModelScorer(model)], [batch], catalogue(), item_block=item_block)
    for i, query in enumerate(model.table):
        expected = twin_ranks(query[seen[:, 0]] @ model.vectors.T, target, seen, True, 2 + TRAINED)
        assert table.ranks["model", f"step{i}"].tolist() == expected
    assert model.calls == 1
    assert table.answers == (("model", "step2"),)


def test_model_scorer_tests_the_heads_it_is_asked_for(make_batch, catalogue) -> None:
    scorer = ModelScorer(DotModel(), name="one", heads=("step1",))
    table = evaluate([scorer], [make_batch(torch.tensor([4]), torch.tensor([[3]]))], catalogue())
    assert list(table.ranks) == [("one", "step1")]
    with pytest.raises(ValueError, match=r"no heads \['step9'\]"):
        ModelScorer(DotModel(), heads=("step9",)).score(
            make_batch(torch.tensor([4]), torch.tensor([[3]])), 2, 4
        )


def test_a_model_in_training_mode_is_refused() -> None:
    model = DotModel()
    model.training = True
    with pytest.raises(ValueError, match="training mode"):
        ModelScorer(model)


def test_duplicate_item_vectors_tie_across_blocks(make_batch, catalogue) -> None:
    model = DotModel()
    model.vectors[2:] = model.vectors[2]
    batch = make_batch(torch.tensor([5, 9]), torch.tensor([[3], [4]]))
    table = evaluate([ModelScorer(model)], [batch], catalogue(), item_block=5)
    assert table.ranks["model", "step0"].tolist() == [TRAINED - 1, TRAINED - 1]


def test_target_scores_equal_those_of_their_block(make_batch) -> None:
    scorer = ModelScorer(DotModel())
    target = torch.arange(2, 20)
    batch = make_batch(target, target[:, None])
    guess = scorer.score_items(batch, target)
    block = scorer.score(batch, 0, N)
    for head in scorer.heads:
        expected = block[head].gather(1, target[:, None])[:, 0]
        torch.testing.assert_close(guess[head], expected, rtol=1e-6, atol=1e-6)


def test_a_model_that_answers_several_requests_a_row_is_refused(make_batch) -> None:
    model = DotModel()
    model.queries = lambda context, items=None: {"step0": torch.zeros(1, 2, 8)}
    with pytest.raises(ValueError, match=r"one request a row, \(B, 1, D\), not \[\(1, 2, 8\)\]"):
        ModelScorer(model).score(make_batch(torch.tensor([4]), torch.tensor([[3]])), 2, 4)


def test_scores_can_be_asked_for_inside_and_outside_an_evaluation(make_batch, catalogue) -> None:
    scorer = ModelScorer(DotModel())
    batch = make_batch(torch.tensor([4]), torch.tensor([[3]]))
    before = scorer.score(batch, 2, N)["step0"].clone()
    evaluate([scorer], [batch], catalogue())
    assert torch.equal(scorer.score(batch, 2, N)["step0"], before)
