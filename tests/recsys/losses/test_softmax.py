import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from recsys.losses.softmax import full_softmax_loss, rounded_products, sampled_softmax_loss

N, D = 11, 4


def leaves(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    query = torch.randn(n, D, dtype=dtype, requires_grad=True)
    items = torch.randn(N, D, dtype=dtype, requires_grad=True)
    return query, items, torch.randint(0, N, (n,))


@pytest.mark.parametrize("chunk", [1, 3, 7, 100, None])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_the_full_softmax_equals_cross_entropy_gradients_included(
    chunk: int | None, weighted: bool, temperature: float
) -> None:
    query, items, target = leaves(7)
    weight = torch.tensor([1.0, 0, 2, 1, 0.5, 3, 1], dtype=torch.float64) if weighted else None
    options: dict[str, Any] = {} if chunk is None else {"chunk": chunk}
    loss = full_softmax_loss(
        query, items, target, weight=weight, temperature=temperature, **options
    )
    each = F.cross_entropy(query @ items.T / temperature, target, reduction="none")
    expected = each.mean() if weight is None else (each * weight).sum() / weight.sum()
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=0)
    ours = torch.autograd.grad(2.5 * loss, (query, items))
    theirs = torch.autograd.grad(2.5 * expected, (query, items))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=0)


def test_gradients_of_a_query_or_of_the_items_alone_are_the_same() -> None:
    query, items, target = leaves(5)
    both = torch.autograd.grad(full_softmax_loss(query, items, target), (query, items))
    alone = torch.autograd.grad(full_softmax_loss(query, items.detach(), target), query)
    assert torch.equal(both[0], alone[0])
    alone = torch.autograd.grad(full_softmax_loss(query.detach(), items, target), items)
    assert torch.equal(both[1], alone[0])


def test_huge_logits_neither_overflow_nor_lose_the_loss() -> None:
    query, items = torch.full((2, 1), 1e4), torch.tensor([[1.0], [-1.0]])
    loss = full_softmax_loss(query, items, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(1e4)  # 0 for the first, 2e4 for the second


def test_a_confident_right_answer_costs_nothing_and_pulls_nothing() -> None:
    query = torch.full((1, 1), 50.0, requires_grad=True)
    loss = full_softmax_loss(query, torch.tensor([[1.0], [-1.0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(loss, query)[0].item() == pytest.approx(0, abs=1e-6)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements of any tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.largest = max(self.largest, out.numel())
        return out


def test_no_more_than_a_chunk_of_logits_ever_exists() -> None:
    query, items = torch.randn(64, 2, requires_grad=True), torch.randn(50, 2, requires_grad=True)
    with LargestTensor() as seen:
        full_softmax_loss(query, items, torch.zeros(64).long(), chunk=4).backward()
    assert seen.largest == 4 * 50


class HowProductsAreMade(TorchDispatchMode):
    """Remembers the precision of every matrix product's factors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "mm" in func.__name__:
            self.seen.add(torch.backends.mkldnn.matmul.fp32_precision)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("enabled", [True, False])
def test_products_are_rounded_where_that_is_asked_for_and_nowhere_else(enabled: bool) -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    query, items, target = leaves(5, torch.float32)
    with rounded_products(enabled):
        with HowProductsAreMade() as inside:
            loss = full_softmax_loss(query, items, target)
        with HowProductsAreMade() as outside:
            query @ items.T
    with HowProductsAreMade() as after:
        loss.backward()
        full_softmax_loss(query, items, target).backward()
    assert inside.seen == {"bf16" if enabled else "ieee"}
    assert outside.seen == after.seen == {"ieee"}


def test_rounded_products_change_loss_and_gradients_by_less_than_one_percent() -> None:
    """Each factor loses at most 1 part in 512; the softmax and the sums are float32."""
    query = torch.randn(300, 64, requires_grad=True)
    items = (0.3 * torch.randn(2000, 64)).requires_grad_()
    target = torch.randint(0, 2000, (300,))
    exact = full_softmax_loss(query, items, target)
    with rounded_products():
        rounded = full_softmax_loss(query, items, target)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=1e-3)
    for mine, other in zip(
        torch.autograd.grad(rounded, (query, items)),
        torch.autograd.grad(exact, (query, items)),
        strict=True,
    ):
        assert (mine - other).norm() < 0.01 * other.norm()


def test_half_precision_vectors_are_read_as_float32() -> None:
    query, items, target = leaves(5, torch.bfloat16)
    loss = full_softmax_loss(query, items, target)
    assert torch.equal(loss, full_softmax_loss(query.float(), items.float(), target))
    loss.backward()
    assert query.grad is not None
    assert query.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_several_targets_of_a_query_equal_one_row_each(chunk: int) -> None:
    query, items, _ = leaves(4)
    target = torch.tensor([[3, 5, 0], [10, 10, 2], [1, 0, 0], [0, 0, 0]])
    weight = torch.tensor(
        [[0.5, 0.2, 0.3], [1.0, 2.0, 0.0], [0.7, 0, 0], [0, 0, 0]], dtype=torch.float64
    )
    loss = full_softmax_loss(query, items, target, weight=weight, temperature=0.5, chunk=chunk)
    row, column = weight.nonzero(as_tuple=True)
    apart = full_softmax_loss(
        query[row], items, target[row, column], weight=weight[row, column], temperature=0.5
    )
    torch.testing.assert_close(loss, apart, atol=1e-12, rtol=0)
    ours = torch.autograd.grad(loss, (query, items))
    theirs = torch.autograd.grad(apart, (query, items))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=0)
    assert not ours[0][3].any()  # no target, no pull


def test_several_targets_without_weights_count_alike() -> None:
    query, items, _ = leaves(2)
    target = torch.tensor([[3, 5], [0, 1]])
    each = [full_softmax_loss(query, items, target[:, j]) for j in range(2)]
    torch.testing.assert_close(full_softmax_loss(query, items, target), sum(each) / 2)


def test_a_query_costs_one_row_of_logits_however_many_targets_it_has() -> None:
    query, items = torch.randn(8, 2, requires_grad=True), torch.randn(50, 2, requires_grad=True)
    with LargestTensor() as seen:
        full_softmax_loss(query, items, torch.zeros(8, 10).long()).backward()
    assert seen.largest == 8 * 50


def test_no_queries_cost_nothing_and_still_have_a_gradient() -> None:
    query, items, target = leaves(0)
    loss = full_softmax_loss(query, items, target)
    assert loss.item() == 0
    loss.backward()
    weightless = full_softmax_loss(*leaves(3), weight=torch.zeros(3))
    assert weightless.item() == 0


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature: float) -> None:
    query, items, target = leaves(2)
    with pytest.raises(ValueError, match=rf"temperature \({temperature}\) must be above 0"):
        full_softmax_loss(query, items, target, temperature=temperature)
    with pytest.raises(ValueError, match=rf"temperature \({temperature}\) must be above 0"):
        sampled_softmax_loss(query, query, items, target, target, temperature=temperature)


def test_shapes_that_disagree_are_refused() -> None:
    query, items, target = leaves(2)
    with pytest.raises(ValueError, match=r"query \(2, 4\), items \(11, 3\) and target \(2,\)"):
        full_softmax_loss(query, items[:, :3], target)
    with pytest.raises(ValueError, match=r"and target \(1,\) must be \(n, D\), \(N, D\)"):
        full_softmax_loss(query, items, target[:1])
    with pytest.raises(ValueError, match=r"and target \(2, 1, 1\) must be .* or \(n, J\)"):
        full_softmax_loss(query, items, target[:, None, None])
    with pytest.raises(ValueError, match=r"weight \(2, 1\) must have the shape of target, \(2,\)"):
        full_softmax_loss(query, items, target, weight=torch.ones(2, 1))


def test_the_sampled_softmax_is_what_the_hand_works_out() -> None:
    query = torch.tensor([[1.0], [2.0]])
    positive, positive_id = torch.tensor([[0.5], [1.0]]), torch.tensor([5, 6])
    negatives, negative_id = torch.tensor([[-1.0], [0.0], [1.0]]), torch.tensor([8, 9, 6])
    loss = sampled_softmax_loss(
        query, positive, negatives, positive_id, negative_id, temperature=0.5
    )
    e = math.exp
    first = -math.log(e(1) / (e(1) + e(-2) + e(0) + e(2)))
    second = -math.log(e(4) / (e(4) + e(-4) + e(0)))  # the last negative is its own positive
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_log_q_turns_every_negative_into_the_number_of_items_it_stands_for() -> None:
    zeros, ids = torch.zeros(1, 2), torch.tensor([7])
    log_q = torch.tensor([0.5, 0.125]).log()
    loss = sampled_softmax_loss(
        zeros, zeros, torch.zeros(2, 2), ids, torch.tensor([3, 4]), log_q=log_q
    )
    # 1 / (2 * 1/2) + 1 / (2 * 1/8) = 1 + 4 items beside the positive
    assert loss.item() == pytest.approx(math.log(1 + 1 + 4))


def test_equal_probabilities_cancel_when_as_many_are_drawn_as_there_are_items() -> None:
    query, items, target = leaves(3)
    negative = torch.randint(0, N, (N,))
    vectors = (query, items[target], items[negative], target, negative)
    corrected = sampled_softmax_loss(*vectors, log_q=torch.full((N,), -math.log(N)))
    torch.testing.assert_close(corrected, sampled_softmax_loss(*vectors))


def test_drawing_every_other_item_once_is_the_full_softmax() -> None:
    query, items, _ = leaves(1)
    target, others = torch.tensor([4]), torch.tensor([i for i in range(N) if i != 4])
    sampled = sampled_softmax_loss(query, items[target], items[others], target, others)
    torch.testing.assert_close(
        sampled.double(), full_softmax_loss(query, items, target), atol=1e-6, rtol=0
    )


def test_the_gradient_approaches_the_full_softmax_as_more_negatives_are_drawn() -> None:
    query, items, target = leaves(3)
    q = torch.rand(N, dtype=torch.float64) ** 2 + 0.01
    q /= q.sum()
    full = torch.autograd.grad(full_softmax_loss(query, items, target), query)[0]

    def error(drawn: int) -> float:
        negative = torch.multinomial(q, drawn, replacement=True)
        loss = sampled_softmax_loss(
            query, items[target], items[negative], target, negative, log_q=q[negative].log()
        )
        return float((torch.autograd.grad(loss, query)[0] - full).norm() / full.norm())

    few = sum(error(20) for _ in range(10)) / 10
    assert few > 0.05
    assert error(200_000) < 0.02


def test_a_sampled_loss_of_no_queries_is_zero() -> None:
    nothing, ids = torch.zeros(0, 2), torch.zeros(0).long()
    assert sampled_softmax_loss(nothing, nothing, torch.zeros(3, 2), ids, torch.arange(3)) == 0
