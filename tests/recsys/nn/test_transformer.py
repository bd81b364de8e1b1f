"""The cached layer against a dense twin: one sequence, one mask from the one rule, one softmax."""

from dataclasses import dataclass

import pytest
import torch
from dense_twin import dense_layer
from torch import Tensor

from recsys.nn.mask import SHARED, TokenAttributes, may_attend, prefix_visible
from recsys.nn.relative_bias import RelativeBias
from recsys.nn.tail import CachedTail
from recsys.nn.transformer import TransformerLayer

LENGTHS = (6, 3)
CUTS = ((6, 0, 2), (1, 3, 0))
B, Q, T, M, K, H, D = 2, 3, 6, 2, 3, 2, 8
"""K blocks of M tokens a request."""


@dataclass
class Case:
    layers: list[TransformerLayer]
    bias: RelativeBias | None
    prefix: Tensor  # (B, T, D)
    tail: list[Tensor]  # K of (B, Q, M, D)
    time: Tensor  # (B, T)
    request_time: Tensor  # (B, Q)

    def parameters(self) -> list[Tensor]:
        owned = [p for layer in self.layers for p in layer.parameters()]
        owned += list(self.bias.parameters()) if self.bias else []
        return [*owned, self.prefix, *self.tail]

    def fast(self) -> tuple[Tensor, list[Tensor]]:
        cut = torch.tensor(CUTS)
        at = torch.arange(T).expand(B, T)
        bias = self.bias(at, at, self.time, self.time) if self.bias else None
        tail_bias = None
        if self.bias:
            tail_bias = self.bias(cut, at, self.request_time, self.time).transpose(1, 2)[
                :, :, :, None
            ]
        x, caches = self.prefix, []
        for layer in self.layers:
            x, cache = layer.prefix(x, bias)
            caches.append(cache)
        visible, blocks = prefix_visible(cut, T), []
        tail = CachedTail(self.layers, caches, visible, tail_bias)
        for k, block in enumerate(self.tail):
            position = cut[..., None] + k * M + torch.arange(M)
            blocks.append(tail.append(block, position))
        return x, blocks

    def dense(self) -> tuple[Tensor, list[Tensor]]:
        """Each row on its own, its real tokens and all its requests' tokens as one sequence."""
        prefixes = torch.zeros_like(self.prefix)
        blocks = [torch.zeros_like(block) for block in self.tail]
        for b in range(B):
            n = LENGTHS[b]
            parts, rows = (
                [self.prefix[b, :n]],
                [(SHARED, i, 0, i, int(self.time[b, i])) for i in range(n)],
            )
            for q in range(Q):
                for k in range(K):
                    parts.append(self.tail[k][b, q])
                    cut, when = CUTS[b][q], int(self.request_time[b, q])
                    rows += [(q, cut, k, cut + k * M + m, when) for m in range(M)]
            request, position, order, at, time = torch.tensor(rows).T
            tokens = TokenAttributes(request, position, order, torch.full_like(request, SHARED))
            visible = may_attend(tokens, tokens)
            bias = self.prefix.new_zeros(H, len(rows), len(rows))
            if self.bias:
                on_prefix = self.bias(
                    position[None], position[None, :n], time[None], time[None, :n]
                )
                bias = torch.cat((on_prefix[0], bias[:, :, n:]), dim=-1)
            x = torch.cat(parts)
            for layer in self.layers:
                x = dense_layer(layer, x, visible, at, bias)
            prefixes[b, :n] = x[:n]
            tails = x[n:].view(Q, K, M, D)
            for k in range(K):
                blocks[k][b] = tails[:, k]
        return prefixes, blocks


def make(rotary: bool, relative: bool) -> Case:
    layers = [TransformerLayer(D, H, 12, rotary=rotary).double() for _ in range(2)]
    bias = RelativeBias(H, 4, 12).double() if relative else None
    for parameter in bias.parameters() if bias else ():
        torch.nn.init.normal_(parameter)
    prefix = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    tail = [torch.randn(B, Q, M, D, dtype=torch.float64, requires_grad=True) for _ in range(K)]
    time = torch.randint(1, 2000, (B, T)).cumsum(1)
    return Case(layers, bias, prefix, tail, time, time[:, :Q] + torch.randint(1, 5000, (B, Q)))


kinds = pytest.mark.parametrize(
    ("rotary", "relative"), [(False, False), (True, False), (False, True), (True, True)]
)


@kinds
def test_cached_blocks_equal_one_dense_sequence(rotary: bool, relative: bool) -> None:
    case = make(rotary, relative)
    (prefix, blocks), (dense_prefix, dense_blocks) = case.fast(), case.dense()
    for b, n in enumerate(LENGTHS):
        torch.testing.assert_close(prefix[b, :n], dense_prefix[b, :n], atol=1e-12, rtol=0)
    for block, twin in zip(blocks, dense_blocks, strict=True):
        torch.testing.assert_close(block, twin, atol=1e-12, rtol=0)


@kinds
def test_gradients_through_the_cache_equal_those_of_the_dense_sequence(
    rotary: bool, relative: bool
) -> None:
    case = make(rotary, relative)
    weights = [torch.randn_like(block) for block in case.tail]
    on_prefix = torch.randn_like(case.prefix)
    on_prefix[1, LENGTHS[1] :] = 0  # padding has no loss
    gradients = []
    for prefix, blocks in (case.fast(), case.dense()):
        total = (prefix * on_prefix).sum()
        total = total + sum((w * block).sum() for w, block in zip(weights, blocks, strict=True))
        gradients.append(torch.autograd.grad(total, case.parameters()))
    for fast, dense in zip(*gradients, strict=True):
        assert dense.abs().sum() > 0
        torch.testing.assert_close(fast, dense, atol=1e-11, rtol=1e-11)


def test_a_later_block_changes_no_earlier_one() -> None:
    case = make(rotary=True, relative=False)
    _, before = case.fast()
    case.tail[1] = torch.randn_like(case.tail[1])
    _, after = case.fast()
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])
    assert not torch.allclose(before[2], after[2])


def test_a_request_changes_no_other_request() -> None:
    case = make(rotary=False, relative=True)
    _, before = case.fast()
    changed = case.tail[0].detach().clone()
    changed[:, 1] += torch.randn(D, dtype=torch.float64)
    case.tail[0] = changed
    _, after = case.fast()
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[:, [0, 2]], new[:, [0, 2]])
        assert not torch.allclose(old[:, 1], new[:, 1])


def test_what_padding_holds_changes_nothing() -> None:
    case = make(rotary=True, relative=True)
    prefix, blocks = case.fast()
    padded = case.prefix.detach().clone()
    padded[1, LENGTHS[1] :] = 1e3
    case.prefix = padded
    again, blocks_again = case.fast()
    assert torch.equal(prefix[1, : LENGTHS[1]], again[1, : LENGTHS[1]])
    assert all(torch.equal(a, b) for a, b in zip(blocks, blocks_again, strict=True))


def test_keys_and_values_of_given_hidden_states_are_those_the_layer_itself_makes() -> None:
    layer = TransformerLayer(D, H, 12, rotary=True)
    x = torch.randn(B, T, D)
    made, cached = layer.prefix(x)[1], layer.cache_prefix(x)
    assert all(torch.equal(one, two) for one, two in zip(made, cached, strict=True))


@pytest.mark.parametrize("rotary", [False, True])
def test_a_layer_asked_only_at_the_cuts_answers_what_the_whole_prefix_answers_there(
    rotary: bool,
) -> None:
    layer = TransformerLayer(D, H, 12, rotary=rotary).double()
    x, cut = torch.randn(B, T, D, dtype=torch.float64), torch.tensor(CUTS)
    whole, found = layer.prefix(x)[0], layer.prefix_at(x, cut)
    for b in range(B):
        for q in range(Q):
            if cut[b, q]:
                torch.testing.assert_close(found[b, q], whole[b, cut[b, q] - 1], atol=1e-12, rtol=0)


def test_a_layer_refuses_a_width_its_heads_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"width \(10\) must be a multiple of num_heads \(4\)"):
        TransformerLayer(10, 4, 8)
