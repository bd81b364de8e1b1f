"""Named runs: each a whole configuration as a function, with what it reproduces.

`python -m pipelines train RUN --data DIR --out DIR`; every field is a flag, `--help` lists them.
The dates, commands and results of the runs are in notebooks/LOG.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from recsys.context.config import ContextConfig
from recsys.model.config import BackboneConfig, EncoderConfig, RankerConfig, ReasonerConfig
from recsys.training.loop import TrainConfig
from recsys.training.objective import ObjectiveConfig
from recsys.training.optim import OptimizerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """A whole training run, data apart."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    reasoner: ReasonerConfig = field(default_factory=ReasonerConfig)
    ranker: RankerConfig = field(default_factory=RankerConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    answer: Literal["best", "last"] = "best"
    """Which head recommends: the best on validation, or always the deepest step."""
    validation_users: int = 20_000
    """Users a validation during training asks, at most."""


def default() -> RunConfig:
    """A start for any log: width 64, two layers, two reasoning steps."""
    return RunConfig()


def demo() -> RunConfig:
    """The synthetic world of `make demo`: minutes on two cores."""
    return RunConfig(
        encoder=EncoderConfig(max_history=50, id_dropout=0.1),
        context=ContextConfig(max_history=50, requests_per_row=8),
        train=TrainConfig(epochs=30, batch_rows=128, optimizer=OptimizerConfig(lr=3e-3)),
    )


def demo_ranking() -> RunConfig:
    """The ranking stage alone on a trained demo model (--warm-start), on lists that were shown."""
    return ranking_only(demo(), epochs=4)


def ml_1m() -> RunConfig:
    """MovieLens-1M, leave-one-out in file order, ids only, length 200, two reasoning steps."""
    return RunConfig(
        encoder=EncoderConfig(use_behavior=False, use_gap=False),
        context=ContextConfig(requests_per_row=16),
        train=TrainConfig(
            epochs=30,
            batch_rows=128,
            validate_every=3,
            patience=0,
            optimizer=OptimizerConfig(lr=3e-3, weight_decay=0.01),
        ),
    )


def ml_1m_prefix() -> RunConfig:
    """The same without a reasoner: the SASRec-class baseline; throughput is measured on it."""
    return prefix_only(ml_1m())


def ml_1m_steps() -> RunConfig:
    """Two reasoning steps on a trained ml-1m-prefix model (--warm-start), which stays as it is.

    The best way to train steps so far: on ML-1M they end above the prefix head only this way.
    """
    return steps_only(ml_1m(), epochs=5)


def beauty() -> RunConfig:
    """Amazon Beauty 5-core, leave-one-out, ids only, length 50, two reasoning steps."""
    return RunConfig(
        encoder=EncoderConfig(max_history=50, use_behavior=False, use_gap=False, dropout=0.5),
        context=ContextConfig(max_history=50, requests_per_row=4),
        train=TrainConfig(
            epochs=42,
            batch_rows=128,
            validate_every=6,
            patience=0,
            precision="bf16",
            optimizer=OptimizerConfig(lr=2e-3, weight_decay=0.01),
        ),
    )


def beauty_prefix() -> RunConfig:
    """The same without a reasoner."""
    return prefix_only(beauty())


def beauty_steps() -> RunConfig:
    """Two reasoning steps on a trained beauty-prefix model (--warm-start), which stays as it is."""
    return steps_only(beauty(), epochs=8)


def prefix_only(run: RunConfig) -> RunConfig:
    """A run without its reasoner: the prefix head alone."""
    return replace(
        run,
        reasoner=ReasonerConfig(decoder="none", num_steps=0),
        context=replace(run.context, requests_per_row=0),
        train=replace(run.train, objective=ObjectiveConfig(step_weight=0.0)),
    )


def steps_only(run: RunConfig, *, epochs: int) -> RunConfig:
    """A run that trains the reasoner alone, on a prefix head trained before."""
    objective = ObjectiveConfig(prefix_weight=0.0)
    optimizer = OptimizerConfig(lr=1e-3, weight_decay=0.01)
    train = replace(
        run.train, epochs=epochs, validate_every=1, objective=objective, optimizer=optimizer
    )
    return replace(run, train=train)


def ranking_only(run: RunConfig, *, epochs: int) -> RunConfig:
    """A run that trains the ranking alone, on a retriever trained before and shown lists."""
    train = replace(
        run.train,
        epochs=epochs,
        validate_every=1,
        metric="rank/click/gauc",
        objective=ObjectiveConfig(prefix_weight=0.0, step_weight=0.0),
    )
    context = replace(run.context, candidates="impressions", requests_per_row=4)
    return replace(run, context=context, ranker=RankerConfig(decoder="own"), train=train)


RUNS: Final[dict[str, Callable[[], RunConfig]]] = {
    "default": default,
    "demo": demo,
    "demo-ranking": demo_ranking,
    "ml-1m": ml_1m,
    "ml-1m-prefix": ml_1m_prefix,
    "ml-1m-steps": ml_1m_steps,
    "beauty": beauty,
    "beauty-prefix": beauty_prefix,
    "beauty-steps": beauty_steps,
}
"""Name on the command line → the function that builds the run."""
