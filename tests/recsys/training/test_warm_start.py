"""Yesterday's model on today's data: the same logs under other internal ids, and some more."""

import logging
from pathlib import Path

import pytest
import torch
from tiny_world import User, tiny_model, write_dataset
from two_days import NEW, OLD, code, write_day

from recsys.context.config import ContextConfig
from recsys.context.loader import history_batches
from recsys.data.dataset import PreparedDataset
from recsys.model.onepiece import OnePiece
from recsys.model.save import save_pretrained
from recsys.training.warm_start import warm_start
from recsys.types import UNKNOWN


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedDataset, OnePiece, Path]:
    folder = tmp_path_factory.mktemp("old")
    dataset = write_day(folder / "data", OLD)
    model = tiny_model(dataset, seed=1)
    save_pretrained(model, folder / "model", dataset.path)
    return dataset, model, folder / "model"


@pytest.fixture
def new(tmp_path: Path) -> PreparedDataset:
    return write_day(tmp_path / "data", NEW)


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


def coarse_day(folder: Path, codes: list[int], names: list[str] | None) -> PreparedDataset:
    """Three items with coarse codes, which may have names."""
    return write_dataset(
        folder,
        [User(item=[2, 3], train_end=2)],
        num_trained=3,
        item_ids=["a", "b", "c"],
        coarse=codes,
        num_coarse=max(codes) + 1,
        vocabularies={} if names is None else {"coarse": names},
    )


def test_the_coarse_head_follows_the_names_of_its_categories(tmp_path: Path) -> None:
    old = coarse_day(tmp_path / "old", [2, 3, 3], ["book", "film"])
    new = coarse_day(tmp_path / "new", [3, 4, 2], ["art", "book", "film"])
    model, grown = tiny_model(old, seed=1), tiny_model(new, seed=2)
    save_pretrained(model, tmp_path / "model", old.path)
    warm_start(grown, new, tmp_path / "model")
    for part in ("weight", "bias"):
        before = model.get_parameter(f"coarse_head.{part}")
        after = grown.get_parameter(f"coarse_head.{part}")
        assert torch.equal(after, before[[0, 1, 1, 2, 3]])  # art is new


@pytest.mark.parametrize("codes", [[2, 3, 2], [4, 3, 2]])
def test_clusters_that_changed_start_their_head_fresh(
    tmp_path: Path, codes: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Clusters have no names: the same number may stand for other items today."""
    old = coarse_day(tmp_path / "old", [2, 3, 3], None)
    new = coarse_day(tmp_path / "new", codes, None)
    save_pretrained(tiny_model(old, seed=1), tmp_path / "model", old.path)
    grown = tiny_model(new, seed=2)
    fresh = grown.get_parameter("coarse_head.weight").clone()
    with caplog.at_level(logging.WARNING):
        warm_start(grown, new, tmp_path / "model")
    assert "the coarse codes differ, coarse_head.weight starts fresh" in caplog.text
    assert torch.equal(grown.get_parameter("coarse_head.weight"), fresh)


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
