import math

import pytest
import torch

from recsys.losses.contrastive import item_to_user_loss, user_to_item_loss

QUERY = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
ITEMS = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, 3.0]])
IDS = torch.tensor([4, 5, 5])
# scores[i][j] = query i · item j
SCORES = [[2, 0, 0], [0, 3, 3], [2, 3, 3]]


def nats(own: float, others: list[float]) -> float:
    return -math.log(math.exp(own) / (math.exp(own) + sum(map(math.exp, others))))


def test_user_to_item_leaves_out_repeats_of_the_own_positive() -> None:
    expected = [nats(2, [0, 0]), nats(3, [0]), nats(3, [2])]
    loss = user_to_item_loss(QUERY, ITEMS, IDS, temperature=1.0)
    assert loss.item() == pytest.approx(sum(expected) / 3)


def test_item_to_user_leaves_out_requests_of_the_same_user_and_of_the_same_positive() -> None:
    # Column j of SCORES; users a, b, a: item 0 meets query 1, item 1 query 0, item 2 nobody.
    loss = item_to_user_loss(QUERY, ITEMS, IDS, torch.tensor([7, 8, 7]), temperature=1.0)
    expected = [nats(2, [0]), nats(3, [0]), 0.0]
    assert loss.item() == pytest.approx(sum(expected) / 3)


def test_scores_are_divided_by_the_temperature() -> None:
    loss = user_to_item_loss(QUERY, ITEMS, IDS, temperature=2.0)
    assert loss.item() == pytest.approx((nats(1, [0, 0]) + nats(1.5, [0]) + nats(1.5, [1])) / 3)
    ours = item_to_user_loss(QUERY, ITEMS, IDS, torch.arange(3), temperature=2.0)
    assert ours.item() == pytest.approx((nats(1, [0, 1]) + nats(1.5, [0]) + nats(1.5, [0])) / 3)


def test_masked_pairs_get_no_gradient() -> None:
    items = ITEMS.clone().requires_grad_()
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = user_to_item_loss(query, items[1:], torch.tensor([5, 5]), temperature=1.0)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, items)[0].abs().sum() == 0


@pytest.mark.parametrize("temperature", [0.0, -0.5])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=rf"temperature \({temperature}\) must be above 0"):
        user_to_item_loss(QUERY, ITEMS, IDS, temperature=temperature)
    with pytest.raises(ValueError, match=rf"temperature \({temperature}\) must be above 0"):
        item_to_user_loss(QUERY, ITEMS, IDS, IDS, temperature=temperature)


def test_no_queries_cost_nothing() -> None:
    nothing, ids = torch.zeros(0, 2, requires_grad=True), torch.zeros(0).long()
    loss = user_to_item_loss(nothing, nothing, ids) + item_to_user_loss(nothing, nothing, ids, ids)
    assert loss.item() == 0
    loss.backward()
