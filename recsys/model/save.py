"""A model as a folder of data: JSON, safetensors and the catalogue it was trained on. No code.

```
config.json          {"version", "model": RecommenderConfig, "answer": head, "context": …}
model.safetensors    weights
manifest.json  items.arrow  vocabularies.json  items.*.npy  events.*.npy      copies, from the data
anchors/             the newest row of its tables of preference anchors, where it has any
```
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from recsys.config import from_dict, read_json, to_dict, write_json
from recsys.data.anchors import copy_newest
from recsys.data.dataset import Catalogue
from recsys.data.folder import to_disk
from recsys.model.config import RecommenderConfig
from recsys.model.onepiece import OnePiece
from recsys.schema import FORMAT_VERSION, Manifest

MODEL_VERSION = 1
_CATALOGUE_FILES = ("manifest.json", "items.arrow", "vocabularies.json")


def save_pretrained(
    model: OnePiece, folder: Path, data: Path, *, context: dict[str, Any] | None = None
) -> None:
    """Write a model folder, atomically: a temporary name first, then a rename.

    Args:
        model: What to save.
        folder: Where; an older model there is replaced.
        data: The prepared data set, or the model folder, that holds the catalogue.
        context: How the model's batches were assembled, as JSON values.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, temporary / "model.safetensors")
    for name in [*_CATALOGUE_FILES, *(p.name for p in data.glob("*s.*.npy"))]:
        shutil.copyfile(data / name, temporary / name)
    copy_newest(data, temporary)
    write_json(
        temporary / "config.json",
        {
            "version": MODEL_VERSION,
            "model": to_dict(replace(model.config, backbone=model.saved_backbone)),
            "answer": model.answer_head,
            "context": context or {},
        },
    )
    to_disk(temporary)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_pretrained(folder: Path | str) -> tuple[OnePiece, Catalogue, Manifest, dict[str, Any]]:
    """Read a model folder; nothing in it is executed.

    Args:
        folder: What ``save_pretrained`` wrote.

    Returns:
        The model in evaluation mode, its catalogue, the manifest of the data it was trained on,
        and how its batches were assembled (JSON values).

    Raises:
        ValueError: If the folder is not a model of this version, or a file does not fit.
    """
    folder = Path(folder)
    saved = read_json(folder / "config.json")
    if not isinstance(saved, dict) or saved.get("version") != MODEL_VERSION:
        found = saved.get("version") if isinstance(saved, dict) else None
        raise ValueError(f"{folder} holds a model of version {found!r}, not {MODEL_VERSION}.")
    missing = [key for key in ("model", "context") if not isinstance(saved.get(key), dict)]
    if missing:
        raise ValueError(f"{folder}/config.json lacks the objects {missing}.")
    values = read_json(folder / "manifest.json")
    version = values.get("version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(f"{folder}/manifest.json is of version {version!r}, not {FORMAT_VERSION}.")
    manifest = from_dict(Manifest, values, where=f"{folder}/manifest.json")
    config = from_dict(RecommenderConfig, saved["model"], where=f"{folder}/config.json")
    catalogue = Catalogue.read(folder, manifest)
    model = OnePiece(config, catalogue)
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (RuntimeError, SafetensorError, OSError) as error:
        raise ValueError(
            f"{folder}/model.safetensors does not fit its config.json: {error}."
        ) from None
    answer = saved.get("answer", model.answer_head)
    if answer not in model.heads:
        raise ValueError(f"{folder}/config.json: answer ({answer!r}) must be one of {model.heads}.")
    model.answer_head = answer
    return model.eval(), catalogue, manifest, saved["context"]
