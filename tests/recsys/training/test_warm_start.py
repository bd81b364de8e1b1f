"""Yesterday's model on today's data: the same logs under other internal ids, and some more."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_world import START, User, tiny_model, write_dataset

from recsys.context.config import ContextConfig
from recsys.context.loader import history_batches
from recsys.data.dataset import PreparedDataset
from recsys.model.onepiece import OnePiece
from recsys.model.save import save_pretrained
from recsys.schema import Feature
from recsys.training.checkpoint import RunState, save_checkpoint, set_moments
from recsys.training.optim import OptimizerConfig, build_optimizer
from recsys.training.warm_start import row_sources, warm_start
from recsys.types import FIRST_BEHAVIOR, FIRST_ID, UNKNOWN

FACTS = {
    "a": ("book", ["new", "sale"], 0.1),
    "b": ("film", [], -0.3),
    "c": ("book", ["sale"], 0.7),
    "d": ("game", ["new", "rare"], 1.1),
    "e": ("film", ["rare"], -2.0),
}
LOGS = {
    "de": [("a", "click", "tv"), ("b", "cart", "pc"), ("c", "click", "pc")],
    "fr": [("c", "click", "tv"), ("a", "click", "tv"), ("b", "click", "pc"), ("a", "cart", "tv")],
}
OLD: dict[str, Any] = {
    "trained": ["a", "b", "c"],
    "untrained": ["e"],
    "item.type": ["book", "film"],
    "item.tags": ["new", "sale", "rare"],
    "user.country": ["de", "fr"],
    "event.device": ["tv", "pc"],
    "behaviors": ["click", "cart"],
}
NEW: dict[str, Any] = {
    "trained": ["d", "c", "b", "e", "a"],
    "untrained": [],
    "item.type": ["game", "film", "book"],
    "item.tags": ["rare", "gift", "sale", "new"],
    "user.country": ["us", "fr", "de"],
    "event.device": ["pc", "phone", "tv"],
    "behaviors": ["save", "cart", "click"],
}


def code(words: list[str], word: str) -> int:
    return words.index(word) + FIRST_ID if word in words else UNKNOWN


def write(folder: Path, words: dict[str, Any]) -> PreparedDataset:
    """The logs and facts above under one day's vocabularies."""
    items = [*words["trained"], *words["untrained"]]
    users = [
        User(
            item=[code(items, item) for item, _, _ in events],
            train_end=len(events),
            timestamp=[START + 1000 * i for i in range(len(events))],
            behavior=[words["behaviors"].index(kind) + FIRST_BEHAVIOR for _, kind, _ in events],
            event={"device": [code(words["event.device"], d) for _, _, d in events]},
            user={"country": code(words["user.country"], country)},
        )
        for country, events in LOGS.items()
    ]
    facts = [FACTS[item] for item in items]

    def sized(owner: str, name: str, kind: Any) -> Feature:
        return Feature(name=name, kind=kind, rows=len(words[f"{owner}.{name}"]) + FIRST_ID)

    return write_dataset(
        folder,
        users,
        num_trained=len(words["trained"]),
        num_untrained=len(words["untrained"]),
        item_ids=items,
        behaviors=tuple(words["behaviors"]),
        item_features=(
            sized("item", "type", "categorical"),
            sized("item", "tags", "multi_hot"),
            Feature(name="price", kind="numeric"),
        ),
        user_features=(sized("user", "country", "categorical"),),
        event_features=(sized("event", "device", "categorical"),),
        item_values={
            "type": [0, 1, *(code(words["item.type"], kind) for kind, _, _ in facts)],
            "tags": [
                [],
                [],
                *([code(words["item.tags"], t) for t in tags] for _, tags, _ in facts),
            ],
            "price": [0.0, 0.0, *(price for _, _, price in facts)],
        },
        vocabularies={key: value for key, value in words.items() if "." in key},
    )


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedDataset, OnePiece, Path]:
    folder = tmp_path_factory.mktemp("old")
    dataset = write(folder / "data", OLD)
    model = tiny_model(dataset, seed=1)
    save_pretrained(model, folder / "model", dataset.path)
    return dataset, model, folder / "model"


@pytest.fixture
def new(tmp_path: Path) -> PreparedDataset:
    return write(tmp_path / "data", NEW)


def queries(dataset: PreparedDataset, model: OnePiece) -> dict[str, torch.Tensor]:
    config = ContextConfig(max_history=10)
    stream = history_batches(dataset.buckets[0], dataset.manifest, config)
    rows, context, _ = next(stream)
    order = rows.argsort()
    return {head: query[order] for head, query in model.queries(context).items()}


def test_a_grown_model_answers_known_users_exactly_as_the_old_one(
    old: tuple[PreparedDataset, OnePiece, Path], new: PreparedDataset
) -> None:
    dataset, model, folder = old
    grown = tiny_model(new, seed=2)
    counts = warm_start(grown, new, folder)
    assert (counts.known, counts.new, counts.gone) == (3, 2, 0)
    assert counts.moments == {}  # there is no checkpoint beside the model
    before, after = queries(dataset, model), queries(new, grown)
    assert list(before) == list(after)
    for head in before:
        torch.testing.assert_close(after[head], before[head])
    vectors, grown_vectors = model.item_vectors(), grown.item_vectors()
    for item in ("a", "b", "c"):
        was, now = dataset.catalogue.index[item], new.catalogue.index[item]
        torch.testing.assert_close(grown_vectors[now], vectors[was])


def test_a_new_item_starts_where_the_old_model_put_it_unseen(
    old: tuple[PreparedDataset, OnePiece, Path], new: PreparedDataset
) -> None:
    """Item e was known by its features alone: trained now, it first scores as it did then."""
    dataset, model, folder = old
    grown = tiny_model(new, seed=2)
    warm_start(grown, new, folder)
    was, now = dataset.catalogue.index["e"], new.catalogue.index["e"]
    torch.testing.assert_close(grown.item_vectors()[now], model.item_vectors()[was])
    table = "item_encoder.encoder.id_table.embeddings.id.weight"
    for item in ("d", "e"):
        row = grown.get_parameter(table)[new.catalogue.index[item]]
        assert torch.equal(row, model.get_parameter(table)[UNKNOWN])


def test_new_values_of_features_start_as_the_unknown_one(
    old: tuple[PreparedDataset, OnePiece, Path], new: PreparedDataset
) -> None:
    _, model, folder = old
    grown = tiny_model(new, seed=2)
    warm_start(grown, new, folder)
    for table, kind, value in (
        ("item_encoder.encoder.tables.embeddings.of_type.weight", "item.type", "game"),
        ("item_encoder.encoder.bags.embedding_bags.of_tags.weight", "item.tags", "gift"),
        ("request_tokens.user.tables.embeddings.of_country.weight", "user.country", "us"),
        ("history_tokens.features.tables.embeddings.of_device.weight", "event.device", "phone"),
    ):
        row = grown.get_parameter(table)[code(NEW[kind], value)]
        assert torch.equal(row, model.get_parameter(table)[UNKNOWN]), table


def test_a_grown_model_trains(
    old: tuple[PreparedDataset, OnePiece, Path], new: PreparedDataset
) -> None:
    grown = tiny_model(new, seed=2)
    warm_start(grown, new, old[2])
    grown.train()
    context = next(history_batches(new.buckets[0], new.manifest, ContextConfig()))[1]
    out = grown(context)
    sum(step.square().sum() for step in out.steps).backward()
    assert all(p.grad.isfinite().all() for p in grown.parameters() if p.grad is not None)


def one_step(dataset: PreparedDataset, model: OnePiece, optimizer: torch.optim.Optimizer) -> None:
    context = next(history_batches(dataset.buckets[0], dataset.manifest, ContextConfig()))[1]
    optimizer.zero_grad()
    model(context).prefix.square().sum().backward()
    optimizer.step()


def test_the_optimizers_state_moves_with_the_rows_it_belongs_to(
    new: PreparedDataset, tmp_path: Path
) -> None:
    dataset = write(tmp_path / "old", OLD)
    model = tiny_model(dataset, seed=1)
    optimizer = build_optimizer(model, OptimizerConfig())
    one_step(dataset, model, optimizer)
    run = tmp_path / "run"
    save_pretrained(model, run / "model", dataset.path)
    save_checkpoint(run / "checkpoints", model, optimizer, {}, RunState(step=1))
    grown = tiny_model(new, seed=2)
    moments = warm_start(grown, new, run / "model").moments
    table = "item_encoder.encoder.id_table.embeddings.id.weight"
    for slot in ("exp_avg", "exp_avg_sq"):
        before = optimizer.state[model.get_parameter(table)][slot]
        after = moments[f"{table}.{slot}"]
        for item in ("a", "b", "c"):
            row = after[new.catalogue.index[item]]
            assert torch.equal(row, before[dataset.catalogue.index[item]])
            assert row.any()
        for item in ("d", "e"):
            assert not after[new.catalogue.index[item]].any()
        norm = optimizer.state[model.answer_norm.weight][slot]
        assert torch.equal(moments[f"answer_norm.weight.{slot}"], norm)
    assert moments["answer_norm.weight.step"] == 1
    continued = build_optimizer(grown, OptimizerConfig())
    set_moments(grown, continued, moments)
    one_step(new, grown, continued)
    assert continued.state[grown.answer_norm.weight]["step"] == 2


def test_the_same_data_is_copied_whole(old: tuple[PreparedDataset, OnePiece, Path]) -> None:
    dataset, model, folder = old
    again = tiny_model(dataset, seed=5)
    counts = warm_start(again, dataset, folder)
    assert (counts.known, counts.new, counts.gone) == (3, 0, 0)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_parts_the_old_model_had_not_start_fresh_and_are_named(
    old: tuple[PreparedDataset, OnePiece, Path],
    new: PreparedDataset,
    caplog: pytest.LogCaptureFixture,
) -> None:
    deeper = tiny_model(new, encoder={"num_layers": 3}, seed=2)
    fresh = deeper.get_parameter("encoder.layers.2.qkv.weight").clone()
    with caplog.at_level(logging.WARNING):
        warm_start(deeper, new, old[2])
    assert "encoder.layers.2.qkv.weight is new and starts fresh" in caplog.text
    assert torch.equal(deeper.get_parameter("encoder.layers.2.qkv.weight"), fresh)


def test_coarse_codes_that_differ_start_their_head_fresh(
    old: tuple[PreparedDataset, OnePiece, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = write_dataset(
        tmp_path, [User(item=[2, 3], train_end=2)], num_trained=3, num_coarse=9,
        coarse=[8, 7, 6], item_ids=["a", "b", "c"],
    )  # fmt: skip
    plain = write_dataset(
        tmp_path / "old", [User(item=[2, 3], train_end=2)], num_trained=3,
        item_ids=["a", "b", "c"],
    )  # fmt: skip
    save_pretrained(tiny_model(plain), tmp_path / "model", plain.path)
    with caplog.at_level(logging.WARNING):
        warm_start(tiny_model(dataset, seed=3), dataset, tmp_path / "model")
    assert "coarse codes differ" in caplog.text


def test_other_sizes_are_refused_by_name(
    old: tuple[PreparedDataset, OnePiece, Path], new: PreparedDataset
) -> None:
    wider = tiny_model(new, encoder={"width": 12})
    with pytest.raises(
        ValueError, match=r"weight is \(.*8.*\) in .*model and \(.*12.*\) in this run"
    ):
        warm_start(wider, new, old[2])


def test_a_folder_that_is_no_model_is_refused(new: PreparedDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json does not exist"):
        warm_start(tiny_model(new), new, tmp_path / "gone")


def test_rows_are_found_by_their_value() -> None:
    assert row_sources(["x", "y"], ["z", "y", "x"], 2, 1).tolist() == [0, 1, 1, 3, 2]
    assert row_sources([], ["z"], 3, 0).tolist() == [0, 1, 2, 0]
    assert np.array_equal(row_sources(["x"], [], 2, 1), [0, 1])
