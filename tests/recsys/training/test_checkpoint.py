import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from recsys.config import read_json, write_json
from recsys.training import checkpoint
from recsys.training.checkpoint import (
    RunState,
    append_jsonl,
    drop_later_lines,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)


class Run:
    """A small model in training: three steps taken, an average kept."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, fused=True)
        self.average = {n: p.detach().clone() for n, p in self.model.named_parameters()}

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(5, 3)).square().mean().backward()
        self.optimizer.step()
        for name, parameter in self.model.named_parameters():
            self.average[name].lerp_(parameter.detach(), 0.1)

    def save(self, folder: Path, state: RunState) -> Path:
        return save_checkpoint(folder, self.model, self.optimizer, self.average, state)

    def load(self, folder: Path, config_hash: str = "h") -> RunState:
        return load_checkpoint(
            folder, self.model, self.optimizer, self.average, config_hash=config_hash
        )

    def tensors(self) -> list[Tensor]:
        state = [self.optimizer.state[p] for p in self.model.parameters()]
        moments = [moments[key] for moments in state for key in sorted(moments)]
        return [*self.model.state_dict().values(), *moments, *self.average.values()]


STATE = RunState(
    step=3, epoch=1, batch=2, best_metric=0.25, best_epoch=1, seconds=1.5, threads=1,
    config_hash="h",
)  # fmt: skip


@pytest.fixture
def run() -> Run:
    run = Run()
    for _ in range(3):
        run.step()
    return run


def same(one: Run, other: Run) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors(), strict=True))


def test_what_is_restored_goes_on_as_if_nothing_had_happened(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path, STATE)
    run.step()
    other = Run(seed=7)
    assert other.load(tmp_path) == STATE
    other.step()  # draws its batch: the generator is restored too
    assert same(run, other)


def test_only_the_latest_checkpoint_is_kept(run: Run, tmp_path: Path) -> None:
    for step in (3, 7, 12):
        run.save(tmp_path, replace(STATE, step=step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest.json", "step-00000012"]
    assert Run(1).load(tmp_path).step == 12


def test_a_checkpoint_is_on_the_disk_before_it_is_announced_and_others_are_deleted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save(tmp_path, replace(STATE, step=2))
    done: list[str] = []

    def watch(owner: object, name: str, tell: Callable[..., str]) -> None:
        call = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (done.append(tell(*a)), call(*a, **k))[1])

    names: dict[int, str] = {}
    open_file = os.open

    def opened(path: Path, flags: int, *rest: int) -> int:
        handle = open_file(path, flags, *rest)
        names[handle] = Path(path).name
        return handle

    monkeypatch.setattr(os, "open", opened)
    watch(os, "fsync", lambda handle: f"sync {names.pop(handle, 'json')}")
    watch(os, "replace", lambda source, target: f"name {Path(target).name}")
    watch(shutil, "rmtree", lambda folder, **_: f"delete {Path(folder).name}")
    run.save(tmp_path, STATE)
    marks = ["sync tensors.safetensors", "name step-00000003", "name latest.json"]
    marks += [f"sync {tmp_path.name}", "delete step-00000002"]
    places = [done.index(mark) for mark in marks]
    assert places == sorted(places)
    assert done[done.index("name latest.json") - 1] == "sync json"


def test_no_pickle_is_written(run: Run, tmp_path: Path) -> None:
    folder = run.save(tmp_path, STATE)
    assert sorted(p.name for p in folder.iterdir()) == ["state.json", "tensors.safetensors"]


class Killed(BaseException):
    pass


def killer(countdown: int, call: Callable[..., object]) -> Callable[..., object]:
    left = [countdown]

    def killed(*args: object, **kwargs: object) -> object:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return call(*args, **kwargs)

    return killed


@pytest.mark.parametrize("same_step", [False, True])
@pytest.mark.parametrize(
    ("owner", "name", "countdown"),
    [
        (checkpoint, "save_file", 0),
        (checkpoint, "write_json", 0),
        (checkpoint, "write_json", 1),
        (os, "replace", 0),
        (os, "replace", 1),
        (os, "replace", 2),
        (checkpoint.shutil, "rmtree", 0),
        (checkpoint.shutil, "rmtree", 1),
        (checkpoint.shutil, "rmtree", 2),
    ],
)
def test_a_save_killed_anywhere_leaves_a_checkpoint_to_resume_from(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    countdown: int,
    same_step: bool,
) -> None:
    run.save(tmp_path, STATE)
    later = replace(STATE, step=3 if same_step else 4, epoch=2, batch=0)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killer(countdown, getattr(owner, name)))
        try:
            run.save(tmp_path, later)
        except Killed:
            pass
    assert has_checkpoint(tmp_path)
    assert Run(1).load(tmp_path) in (STATE, later)
    run.save(tmp_path, replace(later, step=9))
    assert Run(1).load(tmp_path).step == 9
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest.json", "step-00000009"]


def test_a_checkpoint_of_another_config_is_refused(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path, STATE)
    with pytest.raises(ValueError, match=r"of another config .*this run's is other"):
        run.load(tmp_path, config_hash="other")


def test_a_checkpoint_of_other_sizes_is_refused(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path, STATE)
    other = Run()
    other.model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    with pytest.raises(ValueError, match=r"step-00000003 does not fit the model"):
        other.load(tmp_path)


def test_a_folder_without_a_checkpoint_says_so(run: Run, tmp_path: Path) -> None:
    assert not has_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"latest\.json does not exist"):
        run.load(tmp_path)


@pytest.mark.parametrize("folder", ["../elsewhere", "/etc", "", 3, None])
def test_the_latest_folder_must_be_a_name_beside_the_file(
    run: Run, tmp_path: Path, folder: object
) -> None:
    write_json(tmp_path / "latest.json", {"folder": folder})
    with pytest.raises(ValueError, match="must name a folder beside it"):
        run.load(tmp_path)


@pytest.mark.parametrize("part", ["state.json", "tensors.safetensors"])
def test_a_damaged_checkpoint_is_named(run: Run, tmp_path: Path, part: str) -> None:
    path = run.save(tmp_path, STATE) / part
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=rf"step-00000003.*{part}"):
        Run(1).load(tmp_path)


def test_lines_of_epochs_to_be_written_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    drop_later_lines(path, 3)  # nothing there, nothing done
    assert not path.exists()
    for epoch in (1, 2, 3, 4):
        append_jsonl(path, {"epoch": epoch})
    drop_later_lines(path, 2)
    assert path.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, {"epoch": 1})
    with path.open("a") as file:
        file.write('{"epoch": 2, "lo')
    drop_later_lines(path, 2)
    assert path.read_text() == '{"epoch": 1}\n'


def test_the_state_is_readable_by_a_person(run: Run, tmp_path: Path) -> None:
    folder = run.save(tmp_path, STATE)
    assert read_json(folder / "state.json")["best_metric"] == 0.25
