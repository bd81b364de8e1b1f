"""Checkpoints: everything a run needs to go on as if it had never stopped. No pickle, atomic.

```
RUN/checkpoints/latest.json            {"folder": "step-00001200"}, replaced atomically
RUN/checkpoints/step-00001200/
    tensors.safetensors                model.*, optimizer.<parameter>.*, rng.*
    state.json                         step, epoch, batch, best metric, seed, threads, config hash
```
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recsys.config import from_dict, read_json, write_json
from recsys.data.folder import to_disk


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """Where a run stands, tensors apart."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    """Batches of the epoch already used."""
    sums: dict[str, float] = field(default_factory=dict)
    """Of the epoch's losses so far, by name."""
    best_metric: float | None = None
    best_epoch: int = -1
    seconds: float = 0.0
    """Spent training so far, evaluation apart."""
    threads: int = 0
    config_hash: str = ""


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"optimizer.{names[parameter]}.{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    state: RunState,
) -> Path:
    """Write a checkpoint and make it the latest; older ones are then deleted.

    Args:
        folder: The run's ``checkpoints`` folder.
        model: Its parameters and saved buffers.
        optimizer: Its moments.
        average: Moving average of the parameters by name; empty for none.
        state: Where the run stands.

    Returns:
        The checkpoint's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{state.step:08d}"
    while (folder / name).exists():  # perhaps the latest, which a kill must leave to resume from
        name += "-again"
    temporary, final = folder / f".{name}.tmp", folder / name
    for killed in folder.glob(".step-*.tmp"):
        shutil.rmtree(killed)
    temporary.mkdir()
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    tensors |= _optimizer_tensors(model, optimizer)
    tensors |= {f"average.{key}": value for key, value in average.items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    contiguous = {key: value.detach().contiguous() for key, value in tensors.items()}
    save_file(contiguous, temporary / "tensors.safetensors")
    write_json(temporary / "state.json", asdict(state))
    to_disk(temporary)
    os.replace(temporary, final)
    write_json(folder / "latest.json", {"folder": name})
    to_disk(folder)  # before what it replaces is gone
    for old in folder.glob("step-*"):
        if old.name != name:
            shutil.rmtree(old, ignore_errors=True)
    return final


def has_checkpoint(folder: Path) -> bool:
    """Whether the folder holds a checkpoint to resume from."""
    return (folder / "latest.json").exists()


def _latest(folder: Path) -> Path:
    name = read_json(folder / "latest.json").get("folder")
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise ValueError(f"{folder / 'latest.json'} must name a folder beside it, not {name!r}.")
    return folder / name


def load_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    *,
    config_hash: str,
) -> RunState:
    """Restore model, optimizer and random generators from the latest checkpoint.

    Args:
        folder: The run's ``checkpoints`` folder.
        model: Of the same config.
        optimizer: Over its parameters.
        average: Moving average of the parameters, filled in place; empty for none.
        config_hash: Of this run's config and data; a checkpoint of others is refused.

    Returns:
        Where the run stood.

    Raises:
        ValueError: If there is no checkpoint, it is of another run, damaged, or does not fit.
    """
    name = _latest(folder).name
    state = from_dict(RunState, read_json(folder / name / "state.json"), where=f"{name}/state.json")
    if state.config_hash != config_hash:
        raise ValueError(
            f"The checkpoint in {folder} is of another config or other data (hash "
            f"{state.config_hash[:12]}, this run's is {config_hash[:12]}); resume with the same "
            "flags and data or choose another --out."
        )
    path = folder / name / "tensors.safetensors"
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from None
    own = {key.removeprefix("model."): v for key, v in tensors.items() if key.startswith("model.")}
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        raise ValueError(f"The checkpoint {name} does not fit the model: {error}.") from None
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            name, _, slot = key.removeprefix("optimizer.").rpartition(".")
            moved = value if slot == "step" else value.to(parameters[name].device)
            optimizer.state.setdefault(parameters[name], {})[slot] = moved
    for key, value in average.items():
        value.copy_(tensors[f"average.{key}"])
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    return state


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def drop_later_lines(path: Path, epoch: int) -> None:
    """Remove the lines of epochs after ``epoch``, which a resumed run writes again.

    A last line that a kill cut short goes too.
    """
    if path.exists():
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                kept += [line] if json.loads(line)["epoch"] <= epoch else []
            except json.JSONDecodeError:
                break
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, path)
