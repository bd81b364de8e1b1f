import math

import pytest
import torch

from recsys.losses.binary import binary_loss


def test_the_loss_is_what_the_hand_works_out() -> None:
    positive, negative = torch.tensor([2.0, -1.0]), torch.tensor([[0.0, 1.0], [3.0, -2.0]])

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    first = -math.log(sigmoid(2)) - math.log(1 - sigmoid(0)) - math.log(1 - sigmoid(1))
    second = -math.log(sigmoid(-1)) - math.log(1 - sigmoid(3)) - math.log(1 - sigmoid(-2))
    assert binary_loss(positive, negative).item() == pytest.approx((first + second) / 2)


def test_an_invalid_negative_costs_nothing_and_gets_no_gradient() -> None:
    positive = torch.tensor([0.3])
    negative = torch.tensor([[50.0, 1.0]], requires_grad=True)
    loss = binary_loss(positive, negative, torch.tensor([[False, True]]))
    assert loss.item() == pytest.approx(binary_loss(positive, negative[:, 1:]).item())
    assert torch.autograd.grad(loss, negative)[0][0, 0] == 0


def test_a_right_and_sure_answer_costs_nothing_and_a_wrong_one_its_logit() -> None:
    assert binary_loss(torch.tensor([90.0]), torch.tensor([[-90.0]])).item() == pytest.approx(0)
    assert binary_loss(torch.tensor([-90.0]), torch.tensor([[90.0]])).item() == pytest.approx(180)


def test_no_queries_cost_nothing() -> None:
    assert binary_loss(torch.zeros(0), torch.zeros(0, 3)).item() == 0
