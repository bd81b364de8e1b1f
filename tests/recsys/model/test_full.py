"""OnePiece's own form, where everything in the context sees everything, against one dense pass."""

from dataclasses import replace

import pytest
import torch
from dense_twin import dense_layer
from tiny_world import in_float64, only_request, random_context, tiny_model
from torch import Tensor

from recsys.batch import CandidateSet, ContextBatch
from recsys.data.dataset import PreparedDataset
from recsys.model.onepiece import ItemVectors, ModelOutput, OnePiece

LENGTHS, CUTS = (6, 3), ((4,), (3,))
B, G, C, M = 2, 2, 3, 2


def build(toy: PreparedDataset) -> tuple[OnePiece, ContextBatch]:
    model = tiny_model(
        toy,
        encoder={"attention": "full"},
        reasoner={"decoder": "shared", "num_steps": 2},
        ranker={"decoder": "shared", "num_steps": 1, "isolated": False},
        anchor_lengths=(2,),
    )
    context = random_context(LENGTHS, CUTS, num_items=14)
    anchors = torch.tensor([[[3, 0]], [[5, 7]]])
    context = replace(context, requests=replace(context.requests, anchor_item=anchors))
    return in_float64(model), context


def read(model: OnePiece, context: ContextBatch) -> ModelOutput:
    return model(context, ItemVectors(model.embed_items().vectors.double()))


def shown() -> CandidateSet:
    return CandidateSet(torch.tensor([[[[2, 3, 4], [5, 6, 0]]], [[[7, 8, 9], [10, 11, 12]]]]))


def dense(model: OnePiece, output: ModelOutput, group: int | None) -> tuple[Tensor, Tensor]:
    """Last block and logits of one row after another, each step over all that came before."""
    blocks, logits = [], []
    history = model.history_tokens(
        output.batch.history, output.items.take(output.batch.history.item)
    )
    for b in range(B):
        cut = CUTS[b][0]
        base, valid = output.base.tokens[b, 0], output.base.valid[b, 0]
        x = torch.cat((history[b, :cut], base[valid]))
        at = torch.cat((torch.arange(cut), output.base.position[b, 0][valid]))
        step = model.reasoner.step
        width, first = M, cut + M
        if group is not None:
            item = shown().item[b, 0, group]
            item = item[item > 0]
            vectors = output.items.take(item)[None, None, None]
            candidates = CandidateSet(item[None, None, None])
            x = torch.cat(
                (x, model.ranker.tokens(candidates, vectors, output.steps[-1][b : b + 1])[0, 0, 0])
            )
            at = torch.cat((at, torch.full((len(item),), cut + M)))
            step, width = model.ranker.step, len(item)
        order = torch.zeros(len(x))
        for k in range(len(step) + 1):
            visible = order[None, :] <= order[:, None]
            y = x
            for layer in model.encoder.stack:
                y = dense_layer(layer, y, visible, at, y.new_zeros(2, len(y), len(y)))
            if k < len(step):
                x = torch.cat((x, y[-width:] + step[k]))
                here = (
                    torch.full((width,), first + 1 + k)
                    if group is not None
                    else (cut + (k + 1) * M + torch.arange(M))
                )
                at, order = torch.cat((at, here)), torch.cat((order, torch.full((width,), k + 1.0)))
        blocks.append(y[-width:])
        if group is not None:
            logits.append(model.ranker.heads[0](y[-width:])[:, 0])
    return blocks, logits


def test_steps_over_the_cache_equal_a_dense_pass_over_everything(toy: PreparedDataset) -> None:
    model, context = build(toy)
    output = read(model, context)
    twin, _ = dense(model, output, None)
    for b in range(B):
        torch.testing.assert_close(output.latents[-1][b, 0], twin[b], atol=1e-12, rtol=0)


@pytest.mark.parametrize("group", range(G))
def test_candidates_are_read_with_the_context_as_one_sequence(
    toy: PreparedDataset, group: int
) -> None:
    model, context = build(toy)
    output = read(model, context)
    found = model.rank(output, shown()).logits[:, 0, group, :, 0]
    _, twin = dense(model, output, group)
    scores = (output.items.take(shown().item) * output.steps[-1][:, :, None, None]).sum(-1)
    offset = model.ranker._normalise(scores, shown().item != 0) * model.ranker.score_weight[0]
    offset = (offset + model.ranker.bias[0])[:, 0, group]
    for b in range(B):
        n = len(twin[b])
        torch.testing.assert_close(found[b, :n], twin[b] + offset[b, :n], atol=1e-12, rtol=0)


def test_events_after_the_cut_and_padding_change_nothing(toy: PreparedDataset) -> None:
    model, context = build(toy)
    before = read(model, context).steps[-1]
    item = context.history.item.clone()
    item[0, 4:] = 15 - item[0, 4:]
    item[1, 3:] = 9
    changed = replace(context, history=replace(context.history, item=item))
    assert torch.equal(read(model, changed).steps[-1], before)
    item[0, 0] = 15 - item[0, 0]
    assert not torch.equal(read(model, changed).steps[-1][0], before[0])


def test_there_is_no_prefix_head_and_one_request_a_row(toy: PreparedDataset) -> None:
    model, _ = build(toy)
    assert model.heads == ("step0", "step1", "step2")
    many = random_context(LENGTHS, ((4, 1), (3, 2)), num_items=14)
    anchors = torch.zeros(2, 2, 2).long()
    many = replace(many, requests=replace(many.requests, anchor_item=anchors))
    with pytest.raises(ValueError, match=r"reads one request a row, not 2"):
        model(many)
    one = only_request(many, 0)
    one = replace(one, requests=replace(one.requests, anchor_item=anchors[:, :1]))
    assert len(model(one).steps) == 3


def test_full_attention_refuses_an_own_decoder(toy: PreparedDataset) -> None:
    with pytest.raises(ValueError, match="needs reasoner.decoder 'shared'"):
        tiny_model(toy, encoder={"attention": "full"}, reasoner={"decoder": "own"})
