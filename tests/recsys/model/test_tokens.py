from dataclasses import replace

import pytest
import torch
from tiny_world import random_context, tiny_model

from recsys.context.config import ContextConfig
from recsys.context.loader import TrainingBatches
from recsys.data.dataset import PreparedDataset
from recsys.types import PAD, UNKNOWN

UNTRAINED = [12, 13, 14]


def id_table(model: torch.nn.Module) -> torch.nn.Parameter:
    return model.get_parameter("item_encoder.encoder.id_table.embeddings.id.weight")


def test_items_without_training_share_the_unknown_row_and_differ_by_their_features(
    rich: PreparedDataset,
) -> None:
    model = tiny_model(rich)
    before = model.item_vectors()
    assert id_table(model).shape[0] == 12  # padding, unknown, ten trained items
    with torch.no_grad():
        id_table(model)[UNKNOWN] += 1
    moved = model.item_vectors() - before
    changed = moved.abs().sum(dim=1) > 0.1
    assert changed.nonzero()[:, 0].tolist() == [UNKNOWN, *UNTRAINED]
    torch.testing.assert_close(moved[changed], torch.ones(4, 8))
    assert len(before[UNTRAINED].unique(dim=0)) == 3


def test_untrained_items_without_features_are_all_one(toy: PreparedDataset) -> None:
    model = tiny_model(toy)
    vectors = model.item_vectors()
    assert torch.equal(vectors, id_table(model))


def test_every_feature_of_an_item_counts(rich: PreparedDataset) -> None:
    model = tiny_model(rich)
    before = model.item_vectors()
    encoder = model.item_encoder
    buffers = dict(encoder.named_buffers())
    for name in ("value_of_type", "value_of_price", "value_of_title"):
        kept = buffers[name].clone()
        buffers[name][5] = 2 if name == "value_of_type" and kept[5] != 2 else kept[5] + 1
        changed = (model.item_vectors() != before).any(dim=1).nonzero()[:, 0].tolist()
        buffers[name].copy_(kept)
        assert changed == [5], name
    kept = buffers["codes_of_tags"].clone()
    buffers["codes_of_tags"][int(buffers["offsets_of_tags"][5])] = 1
    assert (model.item_vectors() != before).any(dim=1).nonzero()[:, 0].tolist() == [5]
    buffers["codes_of_tags"].copy_(kept)
    assert torch.equal(model.item_vectors(), before)


def test_id_dropout_shows_the_stated_share_as_unknown_in_training_alone(
    rich: PreparedDataset,
) -> None:
    model = tiny_model(rich, encoder={"id_dropout": 0.25})
    encoder = model.item_encoder
    plain = encoder()
    ids = torch.tensor([PAD, UNKNOWN, 5]).repeat(4000)
    with torch.no_grad():
        shown = encoder.train()(ids)
    dropped = (shown - plain[ids]).abs().sum(dim=1).view(-1, 3) > 1e-5
    assert dropped[:, :2].sum() == 0
    assert dropped[:, 2].float().mean().item() == pytest.approx(0.25, abs=0.04)
    as_unknown = plain[5] - id_table(model)[5] + id_table(model)[UNKNOWN]
    torch.testing.assert_close(shown.view(-1, 3, 8)[dropped[:, 2], 2][0], as_unknown)
    assert torch.equal(encoder.eval()(), plain)


def test_a_catalogue_without_features_never_drops_its_ids(toy: PreparedDataset) -> None:
    model = tiny_model(toy, encoder={"id_dropout": 0.9}).train()
    assert torch.equal(model.item_encoder(), id_table(model))


def test_a_history_token_is_the_sum_of_what_is_known_of_its_event(toy: PreparedDataset) -> None:
    model = tiny_model(toy)
    tokens = model.history_tokens
    history = random_context((3, 2), ((1,), (1,)), num_items=12).history
    items = torch.randn(2, 3, 8)
    table = {name: module.weight for name, module in tokens.tables.items()}
    expected = items * 8**0.5 + table["position"][:3]
    expected = expected + table["behavior"][history.behavior] + table["gap"][history.gap]
    torch.testing.assert_close(tokens(history, items), expected)


def test_blocks_beyond_the_last_one_told_apart_share_its_embedding(toy: PreparedDataset) -> None:
    model = tiny_model(toy, encoder={"max_blocks": 2})
    history = random_context((3,), ((1,),), num_items=12).history
    items = torch.zeros(1, 3, 8)

    def read(blocks: list[int]) -> torch.Tensor:
        return model.history_tokens(replace(history, block=torch.tensor([blocks])), items)

    assert torch.equal(read([1, 2, 3]), read([1, 2, 2]))
    assert not torch.equal(read([1, 2, 2]), read([1, 1, 2]))


def test_user_event_and_situation_features_reach_their_tokens(rich: PreparedDataset) -> None:
    model = tiny_model(rich)
    context, _ = next(TrainingBatches(rich, ContextConfig(requests_per_row=2)).epoch(0))
    base = model.request_tokens(context)

    def changed(**users: torch.Tensor) -> list[bool]:
        other = model.request_tokens(replace(context, user={**context.user, **users}))
        return [bool((other[:, :, m] != base[:, :, m]).any()) for m in range(2)]

    user = context.user
    assert changed(age=user["age"] + 1) == [True, False]
    assert changed(country=(user["country"] + 1) % 4) == [True, False]
    assert changed(likes=torch.full_like(user["likes"], 4)) == [True, False]
    for name in ("hour", "weekday"):
        moment = context.requests.situation
        moved = {**moment, name: (moment[name] + 1) % 7}
        other = model.request_tokens(
            replace(context, requests=replace(context.requests, situation=moved))
        )
        assert torch.equal(other[:, :, 0], base[:, :, 0])
        assert not torch.equal(other[:, :, 1], base[:, :, 1])
    items = torch.zeros(*context.history.item.shape, 8)
    tokens = model.history_tokens(context.history, items)
    for name, value in context.history.features.items():
        moved_feature = value + 1 if value.is_floating_point() else (value + 1) % 4
        features = {**context.history.features, name: moved_feature}
        other = model.history_tokens(replace(context.history, features=features), items)
        assert not torch.equal(other, tokens), name


def test_a_users_list_is_read_whatever_its_padding(rich: PreparedDataset) -> None:
    model = tiny_model(rich)
    context, _ = next(TrainingBatches(rich, ContextConfig(requests_per_row=2)).epoch(0))
    likes = context.user["likes"]
    wider = torch.cat((likes, torch.zeros(len(likes), 3).long()), dim=1)
    other = replace(context, user={**context.user, "likes": wider})
    assert torch.equal(model.request_tokens(other), model.request_tokens(context))
