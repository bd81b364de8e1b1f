from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_world import in_float64, only_request, only_row, random_context, tiny_config, tiny_model
from torch import Tensor

from recsys.batch import ContextBatch
from recsys.context.config import ContextConfig
from recsys.context.loader import TrainingBatches, evaluation_batches
from recsys.data.dataset import PreparedDataset
from recsys.model.onepiece import ItemVectors, OnePiece

LENGTHS, CUTS = (6, 3, 1), ((6, 0, 2), (1, 3, 0), (1, 1, 0))
DECODERS: dict[str, dict[str, Any]] = {
    "own": {"reasoner": {"decoder": "own"}},
    "shared": {"reasoner": {"decoder": "shared"}},
    "relative": {"reasoner": {"decoder": "own"}, "encoder": {"relative_bias": True}},
}
decoders = pytest.mark.parametrize("kind", DECODERS, ids=str)


def build(toy: PreparedDataset, kind: str = "own") -> tuple[OnePiece, ContextBatch]:
    model = tiny_model(toy, **DECODERS[kind])
    if model.encoder.bias is not None:
        for parameter in model.encoder.bias.parameters():
            torch.nn.init.normal_(parameter)
    return model, random_context(LENGTHS, CUTS, num_items=14)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@decoders
def test_packed_requests_equal_the_same_requests_one_by_one(
    toy: PreparedDataset, kind: str
) -> None:
    model, batch = build(toy, kind)
    in_float64(model)
    packed = model(batch)
    for q in range(3):
        single = model(only_request(batch, q))
        for together, alone in zip(packed.steps, single.steps, strict=True):
            close(together[:, q : q + 1], alone)


@decoders
def test_rows_answer_alike_alone_and_in_a_batch_padded_or_not(
    toy: PreparedDataset, kind: str
) -> None:
    model, batch = build(toy, kind)
    in_float64(model)
    whole = model(batch)
    for b, length in enumerate(LENGTHS):
        for trim in (False, True):
            alone = model(only_row(batch, b, trim=trim))
            close(alone.prefix[0, :length], whole.prefix[b, :length])
            for one, many in zip(alone.steps, whole.steps, strict=True):
                close(one[0], many[b])


@decoders
def test_what_padding_holds_changes_no_bit(toy: PreparedDataset, kind: str) -> None:
    model, batch = build(toy, kind)
    history, real = batch.history, batch.history.is_real
    noisy = replace(
        history,
        item=torch.where(real, history.item, 7),
        behavior=torch.where(real, history.behavior, 3),
        gap=torch.where(real, history.gap, 9),
        timestamp=torch.where(real, history.timestamp, 10**9),
    )
    before, after = model(batch), model(replace(batch, history=noisy))
    assert torch.equal(before.prefix[real], after.prefix[real])
    for one, other in zip(before.steps, after.steps, strict=True):
        assert torch.equal(one, other)


@decoders
@pytest.mark.parametrize("planted_at", [1, 2, 5])
def test_a_planted_future_event_changes_nothing_before_it(
    toy: PreparedDataset, kind: str, planted_at: int
) -> None:
    model, batch = build(toy, kind)
    history = batch.history

    def plant(value: Tensor, new: int) -> Tensor:
        value = value.clone()
        value[0, planted_at] = new
        return value

    planted = replace(
        history,
        item=plant(history.item, int(history.item[0, planted_at]) % 12 + 2),
        gap=plant(history.gap, 33),
        timestamp=plant(history.timestamp, int(history.timestamp[0, planted_at]) + 7),
    )
    before, after = model(batch), model(replace(batch, history=planted))
    assert torch.equal(before.prefix[0, :planted_at], after.prefix[0, :planted_at])
    assert not torch.equal(before.prefix[0, planted_at:], after.prefix[0, planted_at:])
    assert torch.equal(before.prefix[1:], after.prefix[1:])
    for one, other in zip(before.steps, after.steps, strict=True):
        for q, cut in enumerate(CUTS[0]):
            assert torch.equal(one[0, q], other[0, q]) == (cut <= planted_at)
        assert torch.equal(one[1:], other[1:])


def test_a_request_changes_neither_the_prefix_nor_another_request(toy: PreparedDataset) -> None:
    model, batch = build(toy)
    requests = batch.requests
    gap = requests.situation["gap"].clone()
    gap[:, 1] += 5
    situation = {**requests.situation, "gap": gap}
    moved = replace(batch, requests=replace(requests, situation=situation))
    before, after = model(batch), model(moved)
    assert torch.equal(before.prefix, after.prefix)
    for one, other in zip(before.steps, after.steps, strict=True):
        assert torch.equal(one[:, [0, 2]], other[:, [0, 2]])
        assert not torch.equal(one[:, 1], other[:, 1])


@pytest.mark.parametrize("options", [{}, {"encoder": {"similarity": "cosine"}}])
def test_looking_up_the_unique_ids_of_a_step_equals_looking_everything_up(
    rich: PreparedDataset, options: dict[str, Any]
) -> None:
    model = tiny_model(rich, **options)
    batch, labels = next(TrainingBatches(rich, ContextConfig(requests_per_row=3)).epoch(0))
    wanted = torch.cat((batch.history.item.flatten(), labels.next_item.flatten()))
    few, everything = model.embed_items(wanted.unique()), model.embed_items()
    torch.testing.assert_close(few.take(labels.next_item), everything.take(labels.next_item))
    one, other = model(batch, few), model(batch, everything)
    torch.testing.assert_close(one.prefix, other.prefix)
    for a, b in zip(one.steps, other.steps, strict=True):
        torch.testing.assert_close(a, b)


def test_rows_of_looked_up_ids_are_found_by_their_place() -> None:
    items = ItemVectors(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([4, 7, 9]))
    assert items.rows(torch.tensor([[9, 4], [7, 7]])).tolist() == [[2, 0], [1, 1]]
    assert items.take(torch.tensor([[9, 4]])).tolist() == [[[3.0], [1.0]]]


def test_cosine_answers_are_unit_vectors_over_the_temperature(toy: PreparedDataset) -> None:
    encoder = {"similarity": "cosine", "temperature": 0.25}
    model = tiny_model(toy, encoder=encoder)
    out = model(random_context(LENGTHS, CUTS, num_items=14))
    for query in (out.prefix, *out.steps):
        norm = query.norm(dim=-1)
        torch.testing.assert_close(norm, torch.full_like(norm, 4.0))
    torch.testing.assert_close(model.item_vectors().norm(dim=-1), torch.ones(14))


@pytest.mark.parametrize("encoder", [{}, {"similarity": "cosine"}])
def test_queries_name_every_head_the_answer_last(
    rich: PreparedDataset, encoder: dict[str, Any]
) -> None:
    model = tiny_model(rich, encoder=encoder, reasoner={"num_steps": 2})
    stream = evaluation_batches(rich, ContextConfig(), part="test", batch_size=4)
    for batch in stream:
        context = batch.context
        found = model.queries(context)
        assert list(found) == ["prefix", "step0", "step1", "step2"]
        out = model(context)
        last = context.requests.cut[:, 0] - 1
        at_cut = out.prefix[torch.arange(len(last)), last]
        torch.testing.assert_close(found["prefix"][:, 0], at_cut)
        torch.testing.assert_close(found["step2"], out.steps[2])
        with_items = model.queries(context, model.item_vectors())
        assert all(torch.equal(found[name], with_items[name]) for name in found)


def test_the_head_that_recommends_comes_last_whichever_it_is(toy: PreparedDataset) -> None:
    model, batch = build(toy)
    before = model.queries(batch)
    assert model.heads == tuple(before) == ("prefix", "step0", "step1", "step2")
    model.answer_head = "step0"
    after = model.queries(batch)
    assert list(after) == ["prefix", "step1", "step2", "step0"]
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_request_without_history_has_a_zero_prefix_query_and_real_steps(
    toy: PreparedDataset,
) -> None:
    model, _ = build(toy)
    found = model.queries(random_context((0, 2), ((0,), (2,)), num_items=14))
    assert (found["prefix"][0] == 0).all()
    assert (found["prefix"][1] != 0).any()
    assert found["step2"].isfinite().all()
    assert found["step2"][0].abs().sum() > 0


def test_a_model_without_a_reasoner_answers_by_its_prefix_head(toy: PreparedDataset) -> None:
    model = tiny_model(toy, reasoner={"decoder": "none", "num_steps": 0})
    batch = random_context(LENGTHS, CUTS, num_items=14)
    assert model(batch).steps == ()
    assert list(model.queries(batch)) == ["prefix"]
    assert not any(name.startswith(("reasoner", "request")) for name in model.state_dict())


def test_reading_without_reasoning_skips_the_tails(toy: PreparedDataset) -> None:
    model, batch = build(toy)
    out = model(batch, reason=False)
    assert out.steps == out.latents == ()
    assert torch.equal(out.prefix, model(batch).prefix)


def test_a_request_that_has_read_all_the_history_there_can_be_still_has_a_position(
    toy: PreparedDataset,
) -> None:
    model = tiny_model(toy, encoder={"max_history": 6})
    assert model(random_context((6,), ((6,),), num_items=14)).steps[2].isfinite().all()


def test_dropout_acts_in_training_alone(toy: PreparedDataset) -> None:
    model = tiny_model(toy, encoder={"dropout": 0.5})
    batch = random_context(LENGTHS, CUTS, num_items=14)
    assert torch.equal(model(batch).steps[2], model(batch).steps[2])
    model.train()
    assert not torch.equal(model(batch).steps[2], model(batch).steps[2])


def test_a_catalogue_of_another_data_set_is_refused(
    toy: PreparedDataset, rich: PreparedDataset
) -> None:
    with pytest.raises(ValueError, match=r"The catalogue has 15 rows, config 14"):
        OnePiece(tiny_config(toy), rich.catalogue)
