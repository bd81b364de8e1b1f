import dataclasses
import shutil
from pathlib import Path

import pytest

from recsys.config import read_json, write_json
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.models import EvaluationConfig, evaluate_models, model_names

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


def test_a_model_of_another_catalogue_is_refused(prepared, model_folder, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    manifest = read_json(other / "manifest.json")
    manifest["hashes"]["items.arrow"] = "0"
    write_json(other / "manifest.json", manifest)
    with pytest.raises(ValueError, match="other was trained on another catalogue"):
        evaluate_models([other], PreparedDataset(prepared), SMALL)


def test_nothing_to_evaluate_is_refused(prepared) -> None:
    with pytest.raises(ValueError, match="name a model or a baseline"):
        evaluate_models([], PreparedDataset(prepared), EvaluationConfig(baselines=()))


def test_names_are_the_parts_in_which_folders_differ() -> None:
    names = model_names([Path("runs/a/model"), Path("runs/b/model")])
    assert names == ["a", "b"]
    assert model_names([Path("x/one"), Path("y/two")]) == ["one", "two"]
    with pytest.raises(ValueError, match=r"named once, not \['a', 'a'\]"):
        model_names([Path("a"), Path("a")])
