"""Flags are the fields of the configs: none is missing, none is written by hand."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

import pipelines.__main__ as command_line
from pipelines.configs import RUNS, RunConfig
from pipelines.pseudonyms import Pseudonyms
from pipelines.train import Paths
from recsys.data.prepare import PrepareConfig
from recsys.evaluation.models import EvaluationConfig
from recsys.evaluation.ranking_job import RankingConfig
from recsys.scoring.batch import ScoreConfig


def leaves(config: Any, prefix: str = "") -> Iterator[str]:
    """Flag of every field, nested ones included."""
    for field in fields(config):
        name = prefix + field.name.replace("_", "-")
        value = getattr(config, field.name, None)
        if isinstance(config, type) and isinstance(field.default_factory, type):
            value = field.default_factory()
        if is_dataclass(value):
            yield from leaves(value, f"{name}.")
        else:
            yield f"--{name}"


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert command_line.main([*arguments, "--help"]) == 0
    return capsys.readouterr().out


def flags_of(text: str) -> set[str]:
    return set(re.findall(r"(--[a-z][a-z0-9.-]*)", text))


@pytest.mark.parametrize("run", RUNS)
def test_every_field_of_a_run_is_a_flag_and_every_flag_a_field(
    capsys: pytest.CaptureFixture[str], run: str
) -> None:
    found = flags_of(help_of(capsys, "train", run))
    expected = {*leaves(RUNS[run]()), *leaves(Paths)}
    negated = {re.sub(r"(--(?:.*\.)?)", r"\1no-", flag, count=1) for flag in expected}
    assert expected <= found
    assert found <= expected | negated | {"--help"}


@pytest.mark.parametrize(
    ("job", "configs"),
    [
        ("prepare", [PrepareConfig]),
        ("evaluate", [EvaluationConfig]),
        ("score", [ScoreConfig]),
    ],
)
def test_every_field_of_a_jobs_config_is_a_flag(
    capsys: pytest.CaptureFixture[str], job: str, configs: list[type]
) -> None:
    found = flags_of(help_of(capsys, job))
    for config in configs:
        assert set(leaves(config)) <= found


def test_the_ranking_stage_has_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(leaves(RankingConfig, "ranking.")) <= flags_of(help_of(capsys, "evaluate"))


@pytest.mark.parametrize("job", ["prepare", "score"])
def test_the_key_of_pseudonyms_is_named_never_given(
    capsys: pytest.CaptureFixture[str], job: str
) -> None:
    found = flags_of(help_of(capsys, job))
    assert {f"--pseudonymise.{name.removeprefix('--')}" for name in leaves(Pseudonyms)} <= found
    assert not {flag for flag in found if flag.endswith((".key", ".secret"))}


@pytest.mark.parametrize("job", command_line.JOBS)
def test_every_job_says_what_it_does(capsys: pytest.CaptureFixture[str], job: str) -> None:
    text = help_of(capsys, job)
    assert f"python -m pipelines {job}" in text


def test_the_list_of_jobs_is_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["--help"]) == 0
    text = capsys.readouterr().out
    for job, what in command_line.JOBS.items():
        assert job in text
        assert what in text
    assert command_line.main([]) == 2


def test_the_list_of_runs_is_the_help_of_train(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, "train")
    for run in RUNS:
        assert run in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dance"], "no job 'dance'; jobs are prepare, train"),
        (["train"], "--data PATH"),
        (["train", "--data", "x", "--out", "y"], "demo"),
        (["train", "dmeo", "--data", "x", "--out", "y"], "dmeo"),
        (["train", "demo"], "--data"),
        (["train", "demo", "--data", "x", "--out", "y", "--encoder.widht", "3"], "--encoder.width"),
        (["train", "demo", "--data", "x", "--out", "y", "--encoder.width", "wide"], "wide"),
        (["train", "demo", "--data", "x", "--out", "y", "--reasoner.decoder", "big"], "own"),
    ],
)
def test_a_wrong_flag_is_told_and_exits_with_two(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert command_line.main(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err + captured.out
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--encoder.width", "10", "--encoder.num-heads", "4"], r"width (10) must be a multiple"),
        (["--train.optimizer.lr", "0"], "lr (0.0) must be above 0"),
        (["--encoder.dropout", "1"], "dropout (1.0) must be at least 0, below 1"),
    ],
)
def test_a_value_out_of_range_is_one_line_and_no_traceback(
    capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    code = command_line.main(["train", "demo", "--data", "x", "--out", "y", *flags])
    captured = capsys.readouterr()
    assert code in (1, 2)
    assert message in " ".join((captured.err + captured.out).split())
    assert "Traceback" not in captured.err


def test_a_job_that_fails_names_its_log_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    arguments = ["train", "demo", "--data", str(tmp_path / "gone"), "--out", str(tmp_path / "run")]
    assert command_line.main(arguments) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert "train failed" in lines[-1]
    assert "manifest.json does not exist" in lines[-1]
    assert "Log: " in lines[-1]


def test_every_run_says_what_it_is_and_is_a_whole_config() -> None:
    for build in RUNS.values():
        assert (build.__doc__ or "").strip().endswith(".")
        assert isinstance(build(), RunConfig)
        assert build() == build()
