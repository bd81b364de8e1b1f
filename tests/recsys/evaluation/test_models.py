import dataclasses
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_world import tiny_model

from recsys.config import read_json, write_json
from recsys.context.config import ContextConfig
from recsys.data.dataset import Catalogue, PreparedDataset
from recsys.data.prepare import PrepareConfig, prepare
from recsys.evaluation.models import (
    EvaluationConfig,
    evaluate_models,
    load_model,
    load_scorer,
    model_names,
)
from recsys.model.save import load_pretrained, save_pretrained

SMALL = EvaluationConfig(baselines=("popular",), k=(1, 10), batch_size=7)


def test_models_and_baselines_are_tested_on_the_same_requests(prepared, model_folder) -> None:
    told = []
    table = evaluate_models(
        [model_folder],
        PreparedDataset(prepared),
        SMALL,
        progress=lambda stage, done, total: told.append((stage, done, total)),
    )
    assert [key for key, _ in table.heads()] == [
        ("model", "prefix"),
        ("model", "step0"),
        ("model", "step1"),
        ("popular", "score"),
    ]
    assert table.answers == (("model", "step1"), ("popular", "score"))
    assert told[-1] == ("model", table.num_requests, table.num_requests)


def test_models_that_read_other_windows_meet_on_the_same_users(
    prepared, model_folder, tmp_path: Path
) -> None:
    other = tmp_path / "short"
    shutil.copytree(model_folder, other)
    config = read_json(other / "config.json")
    config["context"]["max_history"] = 2
    write_json(other / "config.json", config)
    table = evaluate_models([model_folder, other], PreparedDataset(prepared), SMALL)
    assert [name for name, _ in table.answers] == ["model", "short", "popular"]
    assert len({len(ranks) for ranks in table.ranks.values()}) == 1
    alone = evaluate_models([other], PreparedDataset(prepared), SMALL)
    assert table.ranks["short", "step1"].tolist() == alone.ranks["short", "step1"].tolist()


def test_block_and_batch_sizes_change_no_rank(prepared, model_folder) -> None:
    dataset = PreparedDataset(prepared)
    whole = evaluate_models([model_folder], dataset, SMALL)
    parts = dataclasses.replace(SMALL, batch_size=3, item_block=4)
    pieces = evaluate_models([model_folder], dataset, parts)
    for key, ranks in whole.ranks.items():
        assert ranks.tolist() == pieces.ranks[key].tolist()


@pytest.fixture(scope="module")
def grown(log, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of the log's first half, and the whole log prepared."""
    folder = tmp_path_factory.mktemp("grown")
    half = log[log.timestamp < log.timestamp.median()]
    for name, events in (("old", half), ("new", log)):
        events.to_parquet(folder / f"{name}.parquet", index=False)
        prepare(PrepareConfig(events=(str(folder / f"{name}.parquet"),), out=folder / name))
    dataset = PreparedDataset(folder / "old")
    save_pretrained(
        tiny_model(dataset),
        folder / "model",
        dataset.path,
        context=dataclasses.asdict(ContextConfig(max_history=10)),
    )
    return folder / "model", folder / "new"


def test_a_model_is_tested_on_later_data_and_misses_what_it_does_not_know(
    grown, caplog: pytest.LogCaptureFixture
) -> None:
    folder, data = grown
    dataset = PreparedDataset(data)
    with caplog.at_level(logging.WARNING):
        table = evaluate_models([folder], dataset, SMALL)
    known = set(Catalogue.read(folder, load_pretrained(folder)[2]).index)
    names = dataset.catalogue.item_ids.to_pylist()
    strange = np.array([names[target] not in known for target in table.target])
    ranks = table.ranks["model", "prefix"]
    possible = table.target_known & ~table.target_seen
    assert (strange & table.target_known).sum() > 0
    assert np.isinf(ranks[strange]).all()
    assert np.isfinite(ranks[possible & ~strange]).all()
    trained = set(names[2 : 2 + dataset.catalogue.num_trained])
    assert f"knows {len(trained & known)} of its {len(trained)} trained items" in caplog.text
    missed = int((strange & table.target_known).sum())
    assert f"model does not know {missed} of the {table.num_requests} items" in caplog.text


def test_the_blocks_of_a_translated_model_change_no_rank(grown) -> None:
    folder, data = grown
    whole = evaluate_models([folder], PreparedDataset(data), SMALL)
    parts = dataclasses.replace(SMALL, batch_size=3, item_block=4)
    pieces = evaluate_models([folder], PreparedDataset(data), parts)
    for key, ranks in whole.ranks.items():
        assert ranks.tolist() == pieces.ranks[key].tolist()


def test_a_model_that_may_have_seen_the_answers_is_told_of(
    prepared, model_folder, grown, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, data = grown
    with caplog.at_level(logging.WARNING):
        load_scorer(folder, PreparedDataset(data), name="model")
        assert "seen the answers" not in caplog.text
        load_scorer(model_folder, PreparedDataset(data.parent / "old"), name="model")
    assert "seen the answers" in caplog.text


def test_ranking_is_not_tested_on_other_data(grown) -> None:
    with pytest.raises(ValueError, match="model was trained on another catalogue"):
        load_model(grown[0], PreparedDataset(grown[1]))


def test_nothing_to_evaluate_is_refused(prepared) -> None:
    with pytest.raises(ValueError, match="name a model or a baseline"):
        evaluate_models([], PreparedDataset(prepared), EvaluationConfig(baselines=()))


def test_names_are_the_parts_in_which_folders_differ() -> None:
    names = model_names([Path("runs/a/model"), Path("runs/b/model")])
    assert names == ["a", "b"]
    assert model_names([Path("x/one"), Path("y/two")]) == ["one", "two"]
    with pytest.raises(ValueError, match=r"named once, not \['a', 'a'\]"):
        model_names([Path("a"), Path("a")])
