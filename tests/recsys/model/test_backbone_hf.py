"""A ``transformers`` decoder as backbone: the cached, packed passes against one dense sequence."""

from dataclasses import replace

import pytest
import torch
from tiny_decoder import (
    CUTS,
    DECODERS,
    B,
    Case,
    D,
    G,
    Q,
    T,
    assert_equal,
    case,
    exact,
    make,
)
from torch import Tensor

from recsys.model.backbone_hf import TransformersEncoder
from recsys.model.config import EncoderConfig
from recsys.model.encoder import Encoder, make_layers


@pytest.fixture(scope="module", params=DECODERS)
def encoder(request: pytest.FixtureRequest) -> TransformersEncoder:
    return exact(make(DECODERS[request.param]))


def changed(found: Tensor, before: Tensor) -> bool:
    return bool((found - before).abs().max() > 1e-3)


@torch.no_grad()
def test_cached_equals_one_dense_pass_under_the_visibility_rule(
    encoder: TransformersEncoder,
) -> None:
    c = case()
    assert_equal(c.fast(encoder), c.dense(encoder))


def test_gradients_through_the_cache_equal_those_of_the_dense_pass() -> None:
    encoder, found = exact(make()), []
    for way in (Case.fast, Case.dense):
        c = case()
        leaves = [x.requires_grad_() for x in (c.prefix, *c.blocks)]
        # What padding answers means nothing.
        answers = [x[real] for x, real in zip(way(c, encoder), c.real, strict=True)]
        total = sum((k + 1) * x.square().sum() for k, x in enumerate(answers))
        found.append(torch.autograd.grad(total, (*leaves, *encoder.model.parameters())))
    for one, other in zip(*found, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_packed_requests_equal_the_same_requests_one_by_one(encoder: TransformersEncoder) -> None:
    c = case()
    packed = c.fast(encoder)
    for b in range(B):
        for i in range(Q * G):
            cut = c.cuts[b][i // G]
            at = [i // G, i // G, i, i]  # the row of each block
            alone = Case(
                c.prefix[b : b + 1, : max(1, cut)],
                [x[b : b + 1, n : n + 1] for x, n in zip(c.blocks, at, strict=True)],
                [x[b : b + 1, n : n + 1] for x, n in zip(c.real, at, strict=True)],
                ((cut,),),
            )
            wanted = [x[b : b + 1, n : n + 1] for x, n in zip(packed, at, strict=True)]
            assert_equal(alone.fast(encoder), wanted)


@torch.no_grad()
def test_padding_of_the_prefix_changes_nothing(encoder: TransformersEncoder) -> None:
    c = case()
    padded = replace(c, prefix=torch.cat((c.prefix, torch.full_like(c.prefix, 7.0)), dim=1))
    assert_equal(padded.fast(encoder), c.fast(encoder))
    assert_equal([padded.read(encoder).hidden[:, :T]], [c.read(encoder).hidden])


@torch.no_grad()
def test_what_padding_in_a_block_holds_changes_nothing(encoder: TransformersEncoder) -> None:
    c, other = case(), case()
    for x, real in zip(other.blocks, other.real, strict=True):
        x[~real] = 7.0
    found, wanted = other.fast(encoder), c.fast(encoder)
    assert_equal(
        [x[real] for x, real in zip(found, c.real, strict=True)],
        [x[real] for x, real in zip(wanted, c.real, strict=True)],
    )
    assert all(x.isfinite().all() for x in found)


@torch.no_grad()
def test_a_block_changes_itself_and_later_blocks_but_none_before() -> None:
    encoder, c = exact(make()), case()
    before = c.fast(encoder)
    for k in range(4):
        other = case()
        other.blocks[k] += 1.0
        for found in (other.fast(encoder), other.dense(encoder)):
            assert_equal(found[:k], before[:k])
            assert all(changed(one, two) for one, two in zip(found[k:], before[k:], strict=True))


@torch.no_grad()
def test_requests_and_groups_never_see_each_other() -> None:
    encoder, c, other = exact(make()), case(), case()
    other.blocks[0][:, 1] += 1.0
    other.blocks[2][:, 1] += 1.0
    before, after = c.fast(encoder), other.fast(encoder)
    assert_equal([x[:, 0] for x in after], [x[:, 0] for x in before])
    assert all(changed(one[:, 1], two[:, 1]) for one, two in zip(after, before, strict=True))


@torch.no_grad()
def test_permuting_candidates_permutes_their_outputs(encoder: TransformersEncoder) -> None:
    c = case()

    def shuffled(blocks: list[Tensor]) -> list[Tensor]:
        return [*blocks[:2], *(x[:, :, [2, 0, 1]] for x in blocks[2:])]

    other = replace(c, blocks=shuffled(c.blocks), real=shuffled(c.real))
    assert_equal(other.fast(encoder), shuffled(c.fast(encoder)))


def test_the_prefix_never_sees_a_tail() -> None:
    encoder, c = exact(make()), case()
    state = c.read(encoder)
    parts = [state.hidden, *(x for pair in state.cache for x in pair)]
    kept = [x.clone() for x in parts]
    c.blocks[0].requires_grad_()
    tail = encoder.open_tail(state, c.context.requests)
    out = tail.append(c.blocks[0], c.positions()[0])
    tail.fork(G).append(c.blocks[2], c.positions()[2])
    now = [state.hidden, *(x for pair in state.cache for x in pair)]
    assert all(torch.equal(one, other) for one, other in zip(now, kept, strict=True))
    assert torch.autograd.grad(out.sum(), c.blocks[0])[0].any()
    assert torch.autograd.grad(state.hidden.sum(), c.blocks[0], allow_unused=True) == (None,)


def test_tails_over_a_detached_prefix_do_not_train_it() -> None:
    encoder, c = exact(make()), case()
    c.prefix.requires_grad_()
    for detached in (False, True):
        state = c.read(encoder).detach() if detached else c.read(encoder)
        tail = encoder.open_tail(state, c.context.requests)
        out = tail.append(c.blocks[0], c.positions()[0])
        (gradient,) = torch.autograd.grad(out.sum(), c.prefix, allow_unused=True)
        assert (gradient is None) == detached


@torch.no_grad()
def test_a_fork_leaves_the_tail_it_came_from_as_it_was() -> None:
    encoder, c = exact(make()), case()
    at, tail, plain = c.positions(), c.open(encoder), c.open(encoder)
    for one in (tail, plain):
        one.append(c.blocks[0], at[0])
    tail.fork(G).append(c.blocks[2], at[2])
    assert torch.equal(tail.append(c.blocks[1], at[1]), plain.append(c.blocks[1], at[1]))


@torch.no_grad()
def test_skipped_tokens_are_read_but_not_returned() -> None:
    encoder, c = exact(make()), case()
    at, whole, tail = c.positions(), c.open(encoder), c.open(encoder)
    wanted = whole.append(c.blocks[0], at[0])[:, :, 1:]
    assert torch.equal(tail.append(c.blocks[0], at[0], skip=1), wanted)
    assert torch.equal(tail.append(c.blocks[1], at[1]), whole.append(c.blocks[1], at[1]))


@torch.no_grad()
def test_a_decoder_of_its_own_reads_the_last_hidden_states() -> None:
    encoder, c = exact(make()), case()
    compact = EncoderConfig(width=D, dropout=0.0)
    layers = make_layers(compact, 1).double()
    state, requests = c.read(encoder), c.context.requests
    twin = Encoder(compact, has_time=False).double().open_tail(state, requests, layers)
    tail, at = encoder.open_tail(state, requests, layers), c.positions()[0]
    assert torch.equal(tail.append(c.blocks[0], at), twin.append(c.blocks[0], at))


@torch.no_grad()
def test_the_prefix_at_a_cut_is_its_last_visible_token() -> None:
    encoder, c = exact(make()), case()
    hidden = c.read(encoder).hidden
    found = encoder.prefix_at(c.prefix, c.context.history, torch.tensor(CUTS))
    assert torch.equal(found[0], torch.stack((torch.zeros_like(hidden[0, 0]), hidden[0, 3])))
    assert torch.equal(found[1], hidden[1, [2, 1]])


@torch.no_grad()
def test_mixed_precision_stays_finite_and_close() -> None:
    encoder, c = make().eval(), case()
    c = replace(c, prefix=c.prefix.float(), blocks=[x.float() for x in c.blocks])
    plain = c.fast(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = c.fast(encoder)
    for one, other in zip(mixed, plain, strict=True):
        assert (one.float() - other).abs().max() < 0.1 * other.abs().max()
