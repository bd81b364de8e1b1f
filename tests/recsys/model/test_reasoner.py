"""The cached reasoner against recomputing every block of every request from scratch."""

from typing import Any

import pytest
import torch
from dense_twin import dense_layer
from tiny_world import in_float64, random_context, tiny_model
from torch import Tensor

from recsys.batch import ContextBatch
from recsys.data.dataset import PreparedDataset
from recsys.model.encoder import state_at
from recsys.model.onepiece import OnePiece
from recsys.nn.mask import SHARED, TokenAttributes, may_attend

LENGTHS, CUTS = (6, 3), ((6, 0, 2), (1, 3, 0))
M = 2
VARIANTS: dict[str, dict[str, Any]] = {
    "own": {"reasoner": {"decoder": "own"}},
    "own, two layers": {"reasoner": {"decoder": "own", "num_layers": 2}},
    "shared": {"reasoner": {"decoder": "shared"}},
    "shared, relative": {
        "reasoner": {"decoder": "shared"},
        "encoder": {"relative_bias": True, "positions": "learned"},
    },
    "own, relative, rotary": {
        "reasoner": {"decoder": "own"},
        "encoder": {"relative_bias": True, "positions": "rotary"},
    },
    "all options": {
        "reasoner": {"decoder": "own", "gated": True, "norm_rescale": True, "step_rank": 2}
    },
    "none of them": {"reasoner": {"decoder": "shared", "step_embedding": False}},
}
variants = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def build(toy: PreparedDataset, variant: str, num_steps: int = 2) -> tuple[OnePiece, ContextBatch]:
    parts = {key: dict(value) for key, value in VARIANTS[variant].items()}
    parts["reasoner"]["num_steps"] = num_steps
    model = tiny_model(toy, **parts)
    assert model.reasoner is not None
    if model.encoder.bias is not None:
        for parameter in model.encoder.bias.parameters():
            torch.nn.init.normal_(parameter)
    return in_float64(model), random_context(LENGTHS, CUTS, num_items=14)


def full_recompute(model: OnePiece, batch: ContextBatch) -> list[Tensor]:
    """B_0 … B_K: for each step of each request, one dense pass over everything it may read."""
    config, reasoner = model.config.reasoner, model.reasoner
    items = model.embed_items()
    tokens = model.history_tokens(batch.history, items.take(batch.history.item))
    base = model.request_tokens(batch)
    item_norm = items.vectors.norm(dim=-1).mean().detach()
    out: list[list[Tensor]] = [[] for _ in range(config.num_steps + 1)]
    for b in range(len(LENGTHS)):
        for q in range(len(CUTS[0])):
            n, cut, when = LENGTHS[b], CUTS[b][q], batch.requests.timestamp[b, q]
            place = (cut + torch.arange(M)).clamp(max=12)
            first = base[b, q] + model.history_tokens.position(place)
            inputs, blocks = [first], []
            for k in range(config.num_steps + 1):
                if k:
                    x = blocks[-1]
                    if config.norm_rescale:
                        scale = reasoner.log_scale[k - 1].exp() * item_norm
                        x = x / x.norm(dim=-1, keepdim=True) * scale
                    x = x + blocks[-1] @ reasoner.down[k - 1] @ reasoner.up[k - 1]
                    x = x + reasoner.step[k - 1] if config.step_embedding else x
                    inputs.append(x)
                size = n + M * (k + 1)
                request = torch.tensor([SHARED] * n + [0] * (size - n))
                position = torch.tensor([*range(n), *[cut] * (size - n)])
                order = torch.tensor([0] * n + [i for i in range(k + 1) for _ in range(M)])
                attributes = TokenAttributes(request, position, order, torch.full((size,), SHARED))
                visible = may_attend(attributes, attributes)
                at = torch.tensor([*range(n), *range(cut, cut + M * (k + 1))])
                bias = tokens.new_zeros(2, size, size)
                if model.encoder.bias is not None:
                    time = batch.history.timestamp[b, :n]
                    times = torch.cat((time, when.repeat(size - n)))
                    on_prefix = model.encoder.bias(
                        position[None], torch.arange(n)[None], times[None], time[None]
                    )
                    bias = torch.cat((on_prefix[0], bias[:, :, n:]), dim=-1)
                x = torch.cat((tokens[b, :n], *inputs))
                if config.decoder == "shared":
                    for layer in model.encoder.stack:
                        x = dense_layer(layer, x, visible, at, bias)
                else:
                    prefix_bias, seen = bias[:, :n, :n], visible[:n, :n]
                    hidden = tokens[b, :n]
                    for layer in model.encoder.stack:
                        hidden = dense_layer(layer, hidden, seen, at[:n], prefix_bias)
                    state = hidden[cut - 1] if cut else torch.zeros_like(hidden[0])
                    x = torch.cat((inputs[0] + state, *inputs[1:]))
                    for layer in reasoner.layers:
                        x = dense_layer(layer, torch.cat((hidden, x)), visible, at, bias)[n:]
                block = x[-M:]
                if k and config.gated:
                    gate = reasoner.gate[k - 1].sigmoid()
                    block = blocks[-1] + gate * (block - blocks[-1])
                blocks.append(block)
            for k, block in enumerate(blocks):
                out[k].append(block)
    shape = (len(LENGTHS), len(CUTS[0]), M, -1)
    return [torch.stack(found).view(shape) for found in out]


@variants
def test_cached_blocks_equal_a_full_recompute(toy: PreparedDataset, variant: str) -> None:
    model, batch = build(toy, variant)
    fast, slow = model(batch).latents, full_recompute(model, batch)
    assert len(fast) == len(slow) == 3
    for block, twin in zip(fast, slow, strict=True):
        torch.testing.assert_close(block, twin, atol=1e-12, rtol=1e-12)


@variants
def test_gradients_through_the_cache_equal_those_of_a_full_recompute(
    toy: PreparedDataset, variant: str
) -> None:
    model, batch = build(toy, variant)
    parameters = [p for p in model.parameters() if p.requires_grad and p.numel()]
    weights = [torch.randn(2, 3, M, 8, dtype=torch.float64) for _ in range(3)]
    found = []
    for blocks in (model(batch).latents, full_recompute(model, batch)):
        total = sum((w * block).sum() for w, block in zip(weights, blocks, strict=True))
        found.append(torch.autograd.grad(total, parameters, allow_unused=True))
    touched = 0
    for fast, slow in zip(*found, strict=True):
        assert (fast is None) == (slow is None)
        if fast is not None and slow is not None:
            touched += bool(slow.abs().sum() > 0)
            tolerance = 1e-10 if slow.dtype == torch.float64 else 1e-4  # the tables are float32
            torch.testing.assert_close(fast, slow, atol=tolerance, rtol=tolerance)
    assert touched > 15


@variants
def test_a_later_step_changes_no_earlier_block(toy: PreparedDataset, variant: str) -> None:
    model, batch = build(toy, variant)
    shorter, _ = build(toy, variant, num_steps=1)
    state = {
        name: value[:1] if _per_step(name) else value for name, value in model.state_dict().items()
    }
    shorter.load_state_dict(state)
    for one, two in zip(shorter(batch).latents, model(batch).latents, strict=False):
        assert torch.equal(one, two)


def _per_step(name: str) -> bool:
    return name.removeprefix("reasoner.") in {"step", "down", "up", "log_scale", "gate"}


def test_no_steps_answer_what_the_first_block_of_two_steps_answers(toy: PreparedDataset) -> None:
    for decoder in ("own", "shared"):
        two, batch = build(toy, decoder)
        none, _ = build(toy, decoder, num_steps=0)
        state = {n: v[:0] if _per_step(n) else v for n, v in two.state_dict().items()}
        none.load_state_dict(state)
        found = none(batch).steps
        assert len(found) == 1
        assert torch.equal(found[0], two(batch).steps[0])


def test_a_decoder_at_zero_passes_the_prefix_state_and_the_step_embeddings_on(
    toy: PreparedDataset,
) -> None:
    torch.manual_seed(0)
    model = tiny_model(toy)  # for its config alone
    config = model.config
    options = {"decoder": "own", "zero_init": True, "num_layers": 2}
    model = OnePiece(type(config)(data=config.data, encoder=config.encoder, reasoner=type(config.reasoner)(**options)), toy.catalogue)  # fmt: skip  # noqa: E501
    model.eval()
    batch = random_context(LENGTHS, CUTS, num_items=14)
    items = model.embed_items()
    prefix = model.encode(batch, items)
    base = model.request_tokens(batch) + model.history_tokens.position(
        (batch.requests.cut[..., None] + torch.arange(M)).clamp(max=12)
    )
    _, blocks, _ = model.reason(batch, prefix, items)
    expected = base + state_at(prefix.hidden, batch.requests.cut)[:, :, None]
    for k, block in enumerate(blocks):
        torch.testing.assert_close(block, expected + model.reasoner.step[:k].sum(dim=0))


@pytest.mark.parametrize("decoder", ["own", "shared"])
def test_isolated_steps_send_no_gradient_to_the_history_or_the_items(
    toy: PreparedDataset, decoder: str
) -> None:
    batch = random_context(LENGTHS, CUTS, num_items=14)
    touched = {}
    for isolated in (False, True):
        model = tiny_model(toy, reasoner={"decoder": decoder, "isolated": isolated})
        hidden: list[Tensor] = []
        model.history_tokens.register_forward_hook(lambda m, a, out, h=hidden: h.append(out))
        total = sum(step.square().sum() for step in model(batch).steps)
        table = model.get_parameter("item_encoder.encoder.id_table.embeddings.id.weight")
        found = torch.autograd.grad(total, (hidden[0], table), allow_unused=True)
        touched[isolated] = [g is not None and bool(g.abs().sum() > 0) for g in found]
    assert touched == {False: [True, True], True: [False, False]}


def test_isolated_steps_train_nothing_that_the_prefix_head_uses(
    toy: PreparedDataset,
) -> None:
    batch = random_context(LENGTHS, CUTS, num_items=14)
    model = tiny_model(
        toy, encoder={"relative_bias": True}, reasoner={"decoder": "own", "isolated": True}
    )
    out = model(batch)
    sum(step.square().sum() for step in out.steps).backward(retain_graph=True)
    by_steps = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    model.zero_grad(set_to_none=True)
    out.prefix.square().sum().backward()
    by_prefix = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert by_steps
    assert not by_steps & by_prefix


def test_the_state_at_a_cut_is_that_of_the_last_visible_token() -> None:
    hidden = torch.arange(6.0).view(1, 3, 2)
    assert state_at(hidden, torch.tensor([[0, 1, 3]])).tolist() == [[[0, 0], [0, 1], [4, 5]]]
