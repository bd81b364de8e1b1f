import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_world import tiny_model, write_arrow

from recsys.config import from_dict, to_dict
from recsys.context.config import ContextConfig
from recsys.context.loader import evaluation_batches
from recsys.data.dataset import PreparedDataset, read_arrow
from recsys.model.save import load_pretrained, save_pretrained

SCORE = """
import sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from recsys.config import from_dict
from recsys.context.config import ContextConfig
from recsys.context.loader import evaluation_batches
from recsys.data.dataset import PreparedDataset
from recsys.model.save import load_pretrained
model, catalogue, manifest, context = load_pretrained(sys.argv[1])
assert "pickle" not in sys.argv
found = {"items": model.item_vectors().numpy()}
batches = evaluation_batches(
    PreparedDataset(sys.argv[2]), from_dict(ContextConfig, context), part="test", batch_size=4
)
for number, batch in enumerate(batches):
    for head, query in model.queries(batch.context).items():
        found[f"{number}.{head}"] = query.numpy()
np.savez(sys.argv[3], **found)
"""


@pytest.fixture(scope="module")
def saved(rich: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = tiny_model(rich, encoder={"relative_bias": True, "id_dropout": 0.3})
    context = to_dict(ContextConfig(max_history=5))
    save_pretrained(model, folder, rich.path, context=context)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_a_new_process_scores_the_same_bit_for_bit(
    saved: Path, rich: PreparedDataset, tmp_path: Path
) -> None:
    out = tmp_path / "scores.npz"
    command = [sys.executable, "-W", "ignore", "-c", SCORE, str(saved), str(rich.path), str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    model = tiny_model(rich, encoder={"relative_bias": True, "id_dropout": 0.3})
    with np.load(out, allow_pickle=False) as found:
        assert np.array_equal(found["items"], model.item_vectors().numpy())
        names = {"items"}
        config = ContextConfig(max_history=5)
        stream = evaluation_batches(rich, config, part="test", batch_size=4)
        for number, batch in enumerate(stream):
            for head, query in model.queries(batch.context).items():
                names.add(f"{number}.{head}")
                assert np.array_equal(found[f"{number}.{head}"], query.numpy())
        assert set(found) == names


def test_what_is_read_back_is_what_was_saved(saved: Path, rich: PreparedDataset) -> None:
    model, catalogue, manifest, context = load_pretrained(saved)
    assert not model.training
    assert manifest == rich.manifest
    assert catalogue.index == rich.catalogue.index
    assert from_dict(ContextConfig, context) == ContextConfig(max_history=5)
    original = tiny_model(rich, encoder={"relative_bias": True, "id_dropout": 0.3}).state_dict()
    assert all(torch.equal(original[name], v) for name, v in model.state_dict().items())
    assert sorted(p.name for p in saved.iterdir()) == [
        "config.json", "items.arrow", "items.title.npy", "manifest.json", "model.safetensors",
        "vocabularies.json",
    ]  # fmt: skip


def test_the_head_that_recommends_is_saved_with_the_model(
    rich: PreparedDataset, tmp_path: Path
) -> None:
    model = tiny_model(rich)
    for head in model.heads:
        model.answer_head = head
        save_pretrained(model, tmp_path / "model", rich.path)
        assert load_pretrained(tmp_path / "model")[0].answer_head == head


def test_a_saved_model_can_be_saved_again_over_itself(copy: Path) -> None:
    model, _, _, context = load_pretrained(copy)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    save_pretrained(model, copy, copy, context=context)
    again = load_pretrained(copy)[0]
    assert torch.equal(next(again.parameters()), next(model.parameters()))
    assert [p.name for p in copy.parent.iterdir()] == ["model"]


def test_a_save_that_fails_leaves_the_old_model(copy: Path, tmp_path: Path) -> None:
    model = load_pretrained(copy)[0]
    with pytest.raises(OSError, match=r"manifest\.json"):
        save_pretrained(model, copy, tmp_path / "nowhere")
    load_pretrained(copy)


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps(change(values) or values))


def drop_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / "model.safetensors")


def cut_short(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return change


def fewer_items(folder: Path) -> None:
    table = read_arrow(folder / "items.arrow")
    rows = pa.table({name: table[name].to_pylist()[:-1] for name in table.column_names})
    write_arrow(folder / "items.arrow", rows.cast(table.schema))


def without_coarse(folder: Path) -> None:
    table = read_arrow(folder / "items.arrow").drop_columns(["coarse"])
    columns = {name: pa.array(table[name].to_pylist(), table.schema.field(name).type) for name in table.column_names}  # fmt: skip  # noqa: E501
    write_arrow(folder / "items.arrow", pa.table(columns))


def pickled(folder: Path) -> None:
    np.save(folder / "items.title.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def config_json(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", change)


def manifest_json(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "manifest.json", change)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (remove("config.json"), r"config\.json does not exist"),
        (remove("model.safetensors"), r"model\.safetensors"),
        (remove("manifest.json"), r"manifest\.json does not exist"),
        (remove("items.arrow"), r"items\.arrow cannot be read"),
        (remove("items.title.npy"), r"items\.title\.npy"),
        (cut_short("config.json"), r"config\.json is not valid JSON"),
        (cut_short("model.safetensors"), r"model\.safetensors does not fit its config"),
        (cut_short("items.arrow"), r"items\.arrow cannot be read"),
        (cut_short("items.title.npy"), r"items\.title\.npy"),
        (drop_weight, r"model\.safetensors does not fit its config"),
        (fewer_items, r"has 14 rows, its manifest declares 15"),
        (without_coarse, r"items\.arrow.*'coarse'"),
        (pickled, r"items\.title\.npy"),
        (config_json(lambda v: v.update(version=99)), r"version 99, not 1"),
        (config_json(lambda v: [v]), r"version None, not 1"),
        (config_json(lambda v: v.pop("model") and None), r"config\.json.*'model'"),
        (config_json(lambda v: v.pop("context") and None), r"config\.json.*'context'"),
        (
            config_json(lambda v: v["model"]["encoder"].update(evil=1)),
            r"encoder has unknown keys \['evil'\]",
        ),
        (
            config_json(lambda v: v["model"]["encoder"].update(num_layers=3)),
            r"model\.safetensors does not fit its config",
        ),
        (
            config_json(lambda v: v["model"]["encoder"].update(width="wide")),
            r"encoder\.width \('wide'\) must be of type int",
        ),
        (
            config_json(lambda v: v["model"]["data"].update(num_items=99)),
            r"The catalogue has 15 rows, config 99",
        ),
        (
            config_json(lambda v: v.update(answer="step9")),
            r"config\.json: answer \('step9'\) must be one of \('prefix', 'step0'",
        ),
        (manifest_json(lambda v: v.update(version=7)), r"manifest\.json is of version 7"),
        (manifest_json(lambda v: [v]), r"manifest\.json"),
        (manifest_json(lambda v: v.update(num_items=99)), r"has 15 rows, its manifest declares 99"),
    ],
)
def test_a_folder_that_was_tampered_with_is_refused_by_name(
    copy: Path, tamper: Callable[[Path], None], message: str
) -> None:
    tamper(copy)
    with pytest.raises(ValueError, match=message):
        load_pretrained(copy)


def test_nothing_that_is_no_folder_of_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json does not exist"):
        load_pretrained(tmp_path / "gone")
