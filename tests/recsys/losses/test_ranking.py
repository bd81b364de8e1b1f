import math

import pytest
import torch
import torch.nn.functional as F

from recsys.losses.ranking import candidate_loss, set_contrastive_loss


def test_the_candidate_loss_is_the_mean_over_real_candidates() -> None:
    logits = torch.tensor([[0.0, 2.0, 50.0], [-1.0, 50.0, 50.0]])
    positive = torch.tensor([[True, False, False], [False, False, False]])
    valid = torch.tensor([[True, True, False], [True, False, False]])
    by_hand = [-math.log(0.5), math.log1p(math.exp(2.0)), math.log1p(math.exp(-1.0))]
    assert candidate_loss(logits, positive, valid).item() == pytest.approx(sum(by_hand) / 3)


def test_the_set_loss_is_cross_entropy_where_a_group_has_one_positive() -> None:
    logits = torch.randn(5, 4)
    gold = torch.tensor([0, 3, 2, 1, 1])
    positive = F.one_hot(gold, 4).bool()
    found = set_contrastive_loss(logits, positive, torch.ones_like(positive), temperature=0.5)
    torch.testing.assert_close(found, F.cross_entropy(logits / 0.5, gold))


def test_all_positives_of_a_group_share_its_sum() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    positive = torch.tensor([[True, False, True]])
    total = math.log(sum(math.exp(x) for x in (1, 2, 3)))
    expected = ((total - 1) + (total - 3)) / 2
    found = set_contrastive_loss(logits, positive, torch.ones_like(positive))
    assert found.item() == pytest.approx(expected)


def test_padding_and_groups_without_a_positive_count_for_nothing() -> None:
    logits = torch.tensor([[1.0, 2.0, 99.0], [5.0, 6.0, 7.0]], requires_grad=True)
    positive = torch.tensor([[True, False, True], [False, False, False]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    found = set_contrastive_loss(logits, positive, valid)
    alone = set_contrastive_loss(logits[:1, :2], positive[:1, :2], valid[:1, :2])
    torch.testing.assert_close(found, alone)
    (gradient,) = torch.autograd.grad(found, logits)
    assert torch.isfinite(gradient).all()
    assert not gradient[0, 2]
    assert not gradient[1].any()


def test_nothing_to_rank_is_no_loss_and_no_nan() -> None:
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    logits = torch.randn(2, 3, requires_grad=True)
    for loss in (candidate_loss, set_contrastive_loss):
        found = loss(logits, nothing, nothing)
        assert found.item() == 0
        assert torch.isfinite(torch.autograd.grad(found, logits)[0]).all()


def test_a_temperature_of_zero_is_refused() -> None:
    one = torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"temperature \(0\) must be above 0"):
        set_contrastive_loss(torch.zeros(1, 1), one, one, temperature=0)
