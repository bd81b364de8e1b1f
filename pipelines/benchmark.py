"""Our speed and quality against a peer's, in one run, as ratios.

python -m pipelines benchmark train --out data/benchmark --synthetic
"""

import logging
from collections.abc import Callable
from typing import Annotated, Any

import tyro

from pipelines.benchmarks.ablation import AblationBenchmark, benchmark_ablation
from pipelines.benchmarks.evaluate import EvaluateBenchmark, benchmark_evaluate
from pipelines.benchmarks.latency import LatencyBenchmark, benchmark_latency
from pipelines.benchmarks.prepare import PrepareBenchmark, benchmark_prepare
from pipelines.benchmarks.quality import QualityBenchmark, benchmark_quality
from pipelines.benchmarks.score import ScoreBenchmark, benchmark_score
from pipelines.benchmarks.setting import Setting
from pipelines.benchmarks.train import TrainBenchmark, benchmark_train

logger = logging.getLogger(__name__)

Whole = Annotated[Setting, tyro.conf.arg(name="")]


def prepare(setting: Whole, config: Annotated[PrepareBenchmark, tyro.conf.arg(name="")]) -> None:
    """Prepare a synthetic log against polars' bare sort-and-group."""
    benchmark_prepare(setting, config)


def train(setting: Whole, config: Annotated[TrainBenchmark, tyro.conf.arg(name="")]) -> None:
    """Train against RecTools' SASRec; reasoning against the prefix head."""
    benchmark_train(setting, config)


def evaluate(setting: Whole, config: Annotated[EvaluateBenchmark, tyro.conf.arg(name="")]) -> None:
    """Evaluate on the full catalogue against RecTools' recommend."""
    benchmark_evaluate(setting, config)


def score(setting: Whole, config: Annotated[ScoreBenchmark, tyro.conf.arg(name="")]) -> None:
    """Score parquet to parquet against RecTools."""
    benchmark_score(setting, config)


def latency(setting: Whole, config: Annotated[LatencyBenchmark, tyro.conf.arg(name="")]) -> None:
    """Answer one user and many, warm, with and without reasoning."""
    benchmark_latency(setting, config)


def quality(setting: Whole, config: Annotated[QualityBenchmark, tyro.conf.arg(name="")]) -> None:
    """Train both to convergence and compare user by user; hours."""
    benchmark_quality(setting, config)


def ablation(config: Annotated[AblationBenchmark, tyro.conf.arg(name="")]) -> None:
    """Train the rows of the paper's tables 3-6 on one log and compare them; hours."""
    benchmark_ablation(config)


SPEED: dict[str, Callable[[Setting], Any]] = {
    "latency": lambda setting: benchmark_latency(setting, LatencyBenchmark()),
    "evaluate": lambda setting: benchmark_evaluate(setting, EvaluateBenchmark()),
    "score": lambda setting: benchmark_score(setting, ScoreBenchmark()),
    "train": lambda setting: benchmark_train(setting, TrainBenchmark()),
    "prepare": lambda setting: benchmark_prepare(setting, PrepareBenchmark()),
    "quality": lambda setting: benchmark_quality(setting, QualityBenchmark()),
}


def everything(setting: Whole, *, skip: tuple[str, ...] = ()) -> None:
    """All of them with their defaults, the quickest first.

    Args:
        setting: Where to work and on what.
        skip: Those to leave out, such as quality.
    """
    unknown = sorted(set(skip) - set(SPEED))
    if unknown:
        raise ValueError(f"skip {unknown} must be among {sorted(SPEED)}.")
    for name, benchmark in SPEED.items():
        if name not in skip:
            logger.info("benchmark %s", name)
            benchmark(setting)


def main(argv: list[str] | None = None) -> int:
    """Run the job with command line arguments."""
    jobs: dict[str, Callable[..., None]] = {
        f.__name__: f for f in (prepare, train, evaluate, score, latency, quality, ablation)
    }
    tyro.extras.subcommand_cli_from_dict(
        {**jobs, "all": everything}, prog="python -m pipelines benchmark", args=argv
    )
    return 0
