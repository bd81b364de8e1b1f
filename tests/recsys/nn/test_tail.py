"""Tails in groups, with padding and with tokens that do not answer, against one dense sequence."""

from dataclasses import dataclass

import torch
from dense_twin import dense_layer
from torch import Tensor

from recsys.nn.mask import SHARED, TokenAttributes, may_attend, prefix_visible
from recsys.nn.tail import CachedTail
from recsys.nn.transformer import TransformerLayer

B, Q, T, M, G, C, H, D = 2, 2, 5, 3, 2, 4, 2, 8
"""A base block of M tokens a request, then G groups of C candidates, twice."""
LENGTHS, CUTS = (5, 3), ((4, 1), (3, 2))


@dataclass
class Case:
    layers: list[TransformerLayer]
    prefix: Tensor
    base: Tensor  # (B, Q, M, D)
    groups: list[Tensor]  # two of (B, Q * G, C, D)
    real_base: Tensor
    real: Tensor

    def fast(self, skip: int = 0) -> list[Tensor]:
        cut, x, caches = torch.tensor(CUTS), self.prefix, []
        for layer in self.layers:
            x, cache = layer.prefix(x)
            caches.append(cache)
        tail = CachedTail(self.layers, caches, prefix_visible(cut, T))
        at = cut[..., None].expand(B, Q, M) + torch.arange(M)
        out = [tail.append(self.base, at, self.real_base, skip=skip)]
        forked = tail.fork(G)
        at = (cut + M).repeat_interleave(G, dim=1)[..., None].expand(-1, -1, C)
        return out + [forked.append(x, at + k, self.real) for k, x in enumerate(self.groups)]

    def dense(self) -> list[Tensor]:
        out = [torch.zeros_like(x) for x in (self.base, *self.groups)]
        for b in range(B):
            for q in range(Q):
                n, cut = LENGTHS[b], CUTS[b][q]
                parts = [self.prefix[b, :n], self.base[b, q]]
                rows = [(SHARED, i, 0, SHARED, i, 1) for i in range(n)]
                rows += [
                    (0, cut, 0, SHARED, cut + m, int(self.real_base[b, q, m])) for m in range(M)
                ]
                for k, x in enumerate(self.groups):
                    for g in range(G):
                        parts.append(x[b, q * G + g])
                        real = self.real[b, q * G + g]
                        rows += [(0, cut, 1 + k, g, cut + M + k, int(real[c])) for c in range(C)]
                request, position, order, group, at, valid = torch.tensor(rows).T
                tokens = TokenAttributes(request, position, order, group)
                visible = may_attend(tokens, tokens) & valid.bool()
                x = torch.cat(parts)
                zero = x.new_zeros(H, len(rows), len(rows))
                for layer in self.layers:
                    x = dense_layer(layer, x, visible, at, zero)
                out[0][b, q] = x[n : n + M]
                found = x[n + M :].view(2, G, C, D)
                for k in range(2):
                    out[1 + k][b, q * G : (q + 1) * G] = found[k]
        return out


def make(seed: int = 0) -> Case:
    torch.manual_seed(seed)
    layers = [TransformerLayer(D, H, 12, rotary=True).double() for _ in range(2)]
    real = torch.ones(B, Q * G, C, dtype=torch.bool)
    real[0, 1, 2:] = False
    real[1, 3] = False
    real_base = torch.ones(B, Q, M, dtype=torch.bool)
    real_base[0, 0, 1] = False
    return Case(
        layers,
        torch.randn(B, T, D, dtype=torch.float64),
        torch.randn(B, Q, M, D, dtype=torch.float64),
        [torch.randn(B, Q * G, C, D, dtype=torch.float64) for _ in range(2)],
        real_base,
        real,
    )


def test_groups_of_candidates_equal_one_dense_sequence_a_request() -> None:
    case = make()
    for block, twin in zip(case.fast(), case.dense(), strict=True):
        torch.testing.assert_close(block, twin, atol=1e-12, rtol=0)


def test_tokens_that_do_not_answer_are_still_seen() -> None:
    case = make()
    whole, short = case.fast(), case.fast(skip=2)
    assert short[0].shape[2] == M - 2
    torch.testing.assert_close(short[0], whole[0][:, :, 2:], atol=1e-12, rtol=0)
    for one, two in zip(short[1:], whole[1:], strict=True):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=0)
    none = case.fast(skip=M)
    assert none[0].numel() == 0
    torch.testing.assert_close(none[2], whole[2], atol=1e-12, rtol=0)


def test_what_a_padded_candidate_holds_changes_no_other() -> None:
    case = make()
    before = case.fast()
    for x in case.groups:
        x[~case.real] += 7.0
    after = case.fast()
    for one, two in zip(before[1:], after[1:], strict=True):
        torch.testing.assert_close(one[case.real], two[case.real], atol=1e-12, rtol=0)


def test_a_group_changes_no_other_group() -> None:
    case = make()
    before = case.fast()
    case.groups[0][:, 0] += torch.randn(D, dtype=torch.float64)
    after = case.fast()
    for one, two in zip(before, after, strict=True):
        assert torch.equal(one[:, 1:], two[:, 1:])
    assert not torch.allclose(before[2][:, 0], after[2][:, 0])


def test_a_fork_leaves_the_tail_it_came_from_as_it_was() -> None:
    case = make()
    cut = torch.tensor(CUTS)
    caches = [layer.cache_prefix(case.prefix) for layer in case.layers]
    tail, other = (CachedTail(case.layers, caches, prefix_visible(cut, T)) for _ in range(2))
    at = cut[..., None] + torch.arange(M)
    tail.append(case.base, at)
    other.append(case.base, at)
    tail.fork(G).append(case.groups[0], at.repeat_interleave(G, dim=1)[..., :1].expand(-1, -1, C))
    assert torch.equal(tail.append(case.base, at + M), other.append(case.base, at + M))
