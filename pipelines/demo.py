"""A small synthetic world through all of it, by the real commands.

python -m pipelines demo --out data/demo
"""

import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from pipelines.console import table
from recsys.data.synthetic import SyntheticConfig, synthetic_world, write

_COLUMNS = (
    "--columns.item-features categories brand price title",
    "--columns.user-features age_group region device",
    "--columns.event-features device --columns.situation device",
    "--text-features title",
    "--funnel click cart order --target-behavior click",
)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What to make, and where."""

    out: Path = Path("data/demo")
    world: SyntheticConfig = field(default_factory=SyntheticConfig)
    epochs: int = 20
    """Of each of the two retrievers."""


def commands(config: DemoConfig) -> dict[str, str]:
    """The commands of the main job, by what they make.

    Args:
        config: Where the logs are and how long to train.

    Returns:
        Name → the command after ``python -m pipelines``.
    """
    out = shlex.quote(str(config.out))
    logs, data = f"{out}/logs", f"{out}/prepared"
    names = ("events", "items", "users", "impressions")
    tables = " ".join(f"--{name} {logs}/{name}.parquet" for name in names)
    fit = f"train demo --data {data} --overwrite --train.epochs {config.epochs}"
    return {
        "prepared": f"prepare {tables} --out {data} --overwrite {' '.join(_COLUMNS)}",
        "reasoning, K = 2": f"{fit} --out {out}/reasoning",
        "no reasoning, K = 0": f"{fit} --out {out}/no-reasoning --reasoner.num-steps 0",
        "ranking": (
            f"train demo-ranking --data {data} --overwrite --warm-start {out}/reasoning/model "
            f"--out {out}/ranking"
        ),
        "report": (
            f"evaluate --model {out}/reasoning/model --model {out}/no-reasoning/model "
            f"--data {data} --out {out}/report"
        ),
        "report of the ranking": (
            f"evaluate --stage ranking --ranking.calibrate --model {out}/ranking/model "
            f"--data {data} --out {out}/ranking-report"
        ),
        "scores": (
            f"score --model {out}/ranking/model --events {logs}/events.parquet "
            f"--out {out}/scores --k 20 --overwrite"
        ),
    }


def run(config: Annotated[DemoConfig, tyro.conf.arg(name="")]) -> None:
    """Write a synthetic world's logs, then prepare, train, evaluate and score them."""
    started = time.perf_counter()
    write(synthetic_world(config.world), config.out / "logs")
    for what, command in commands(config).items():
        print(f"\n$ python -m pipelines {command}", flush=True)
        done = subprocess.run([sys.executable, "-m", "pipelines", *shlex.split(command)])
        if done.returncode:
            raise ValueError(f"the demo stopped: the step {what!r} failed, see its message above.")
    table(
        "Where things are",
        [
            ("logs", str(config.out / "logs")),
            ("prepared data", str(config.out / "prepared")),
            ("models", f"reasoning, no-reasoning and ranking, each /model, in {config.out}"),
            ("report", str(config.out / "report" / "report.md")),
            ("report of the ranking", str(config.out / "ranking-report" / "report.md")),
            ("scores", str(config.out / "scores")),
            ("seconds", f"{time.perf_counter() - started:.0f}"),
        ],
    )


def main(argv: list[str] | None = None) -> int:
    """Run the job with command line arguments."""
    tyro.cli(run, args=argv, prog="python -m pipelines demo")
    return 0
