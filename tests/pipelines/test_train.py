"""`python -m pipelines train` on the toy world: files, resume, warm start, refusals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import tiny_model, toy_dataset

import pipelines.__main__ as command_line
from pipelines import train as job
from pipelines import validation as judge
from pipelines.configs import RUNS, RunConfig, prefix_only
from recsys.data.dataset import PreparedDataset
from recsys.model.save import load_pretrained

TINY = [
    "--encoder.width", "8", "--encoder.num-layers", "1", "--context.max-history", "8",
    "--context.requests-per-row", "2", "--reasoner.num-steps", "1", "--train.batch-rows", "16",
    "--train.optimizer.warmup-steps", "2", "--train.threads", "1",
]  # fmt: skip


def run(data: PreparedDataset, out: Path, *flags: str, name: str = "default") -> int:
    return command_line.main(
        ["train", name, "--data", str(data.path), "--out", str(out), *TINY, *flags]
    )


def metrics(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def trained(toy: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    assert run(toy, out, "--train.epochs", "2") == 0
    return out


def test_a_run_leaves_a_model_its_metrics_a_checkpoint_and_where_it_came_from(
    trained: Path, toy: PreparedDataset
) -> None:
    assert {p.name for p in trained.iterdir()} == {
        "model", "checkpoints", "metrics.jsonl", "run.json",
    }  # fmt: skip
    model, catalogue, manifest, context = load_pretrained(trained / "model")
    assert model.config.encoder.width == 8
    assert model.config.encoder.max_history == context["max_history"] == 8
    assert model.heads == ("prefix", "step0", "step1")
    assert manifest == toy.manifest
    record = json.loads((trained / "run.json").read_text())
    assert record["run"]["train"]["epochs"] == 2
    assert record["run"]["encoder"]["width"] == 8
    assert set(record["versions"]) >= {"torch", "torchrec"}
    lines = metrics(trained)
    assert [line["epoch"] for line in lines] == [1, 2]
    for line in lines:
        for head in model.heads:
            assert 0 <= line[f"{head}/ndcg@10"] <= 1
        assert line["ndcg@10"] == max(line[f"{head}/ndcg@10"] for head in model.heads)


def test_the_result_is_one_short_table(
    toy: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(toy, tmp_path / "run", "--train.epochs", "1") == 0
    out = capsys.readouterr().out
    for label in ("best validation", "epochs", "targets/s", "model"):
        assert label in out


def test_a_resumed_run_continues_and_ends_as_if_never_stopped(
    toy: PreparedDataset, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = job.save_pretrained
    calls = []

    def dies(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "save_pretrained", dies)
    flags = ("--train.epochs", "2", "--train.checkpoint-every-s", "0")
    out = tmp_path / "run"
    assert run(toy, out, *flags) == 130
    assert calls
    monkeypatch.setattr(job, "save_pretrained", real)
    assert run(toy, out, *flags, "--resume") == 0
    assert metrics(out) == metrics(trained)
    ours, theirs = (load_pretrained(folder / "model")[0].state_dict() for folder in (out, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_folder_in_use_is_never_overwritten_unasked(
    toy: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(toy, out, "--train.epochs", "1") == 0
    before = metrics(out)
    capsys.readouterr()
    assert run(toy, out, "--train.epochs", "1") == 1
    assert "--resume goes on with it, --overwrite deletes it" in capsys.readouterr().err
    assert metrics(out) == before
    assert run(toy, out, "--train.epochs", "1", "--train.seed", "3", "--overwrite") == 0
    assert len(metrics(out)) == 1
    assert metrics(out) != before


def test_overwrite_deletes_no_folder_that_is_not_a_run(
    toy: PreparedDataset, tmp_path: Path
) -> None:
    precious = tmp_path / "run" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    assert run(toy, tmp_path / "run", "--train.epochs", "1", "--overwrite") == 0
    assert precious.read_text() == "years of work"


def test_resuming_with_other_flags_is_refused(
    toy: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(toy, out, "--train.epochs", "1") == 0
    assert run(toy, out, "--train.epochs", "2", "--resume") == 1
    assert "resume with the same flags" in " ".join(capsys.readouterr().err.split())


def test_a_warm_start_begins_with_the_old_models_knowledge(
    toy: PreparedDataset, trained: Path, tmp_path: Path
) -> None:
    warm, grown = ("--warm-start", str(trained / "model")), toy_dataset(tmp_path / "data")
    slow = ("--train.epochs", "1", "--train.optimizer.lr", "1e-9")
    assert run(grown, tmp_path / "warm", *slow, *warm) == 0
    ours, theirs = (
        load_pretrained(folder / "model")[0].state_dict() for folder in (tmp_path / "warm", trained)
    )
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=0)


def test_a_prefix_only_run_has_no_reasoner(toy: PreparedDataset, tmp_path: Path) -> None:
    flags = ("--train.epochs", "1", "--context.requests-per-row", "0", "--reasoner.num-steps", "0")
    assert run(toy, tmp_path / "run", *flags, name="beauty-prefix") == 0
    model = load_pretrained(tmp_path / "run" / "model")[0]
    assert model.heads == ("prefix",)
    assert not [name for name in metrics(tmp_path / "run")[0] if "step0" in name]


def test_always_the_deepest_step_answers_where_that_is_asked(
    toy: PreparedDataset, tmp_path: Path
) -> None:
    assert run(toy, tmp_path / "run", "--train.epochs", "1", "--answer", "last") == 0
    (line,) = metrics(tmp_path / "run")
    assert line["ndcg@10"] == line["step1/ndcg@10"]
    assert load_pretrained(tmp_path / "run" / "model")[0].answer_head == "step1"


@pytest.mark.parametrize("users", [1, 10])
def test_a_validation_asks_no_more_users_than_told(
    toy: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, users: int
) -> None:
    asked: list[int] = []
    real = judge.evaluate

    def watch(scorers: Any, batches: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(sum(len(batch.target) for batch in batches))
        return real(scorers, batches, *args, **kwargs)

    monkeypatch.setattr(judge, "evaluate", watch)
    flags = ("--train.epochs", "1", "--validation-users", str(users))
    assert run(toy, tmp_path / "run", *flags) == 0
    assert asked[0] <= max(users, len(toy.buckets))


@pytest.mark.parametrize("name", RUNS)
def test_every_named_run_builds_a_model(toy: PreparedDataset, name: str) -> None:
    config = RUNS[name]()
    assert config.encoder.max_history == config.context.max_history
    bare = prefix_only(config)
    assert isinstance(bare, RunConfig)
    assert bare.reasoner.decoder == "none"
    assert bare.context.requests_per_row == 0
    assert bare.train.objective.step_weight == 0


@pytest.mark.parametrize("prefix_weight", [0.0, 1.0])
def test_a_run_that_leaves_the_prefix_head_alone_is_judged_by_its_steps(
    toy: PreparedDataset, prefix_weight: float
) -> None:
    run = RUNS["demo"]()
    objective = replace(run.train.objective, prefix_weight=prefix_weight)
    run = replace(run, train=replace(run.train, objective=objective))
    validate = judge.validation(run, toy, None, "cpu")
    for seed in range(4):
        found = validate(tiny_model(toy, seed=seed))
        heads = {name: found[f"{name}/ndcg@10"] for name in ("prefix", "step0", "step1", "step2")}
        if not prefix_weight:
            del heads["prefix"]
        assert found["ndcg@10"] == max(heads.values())
