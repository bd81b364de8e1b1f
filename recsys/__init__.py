"""Latent reasoning for recommender systems: the names that stay; anything else may change.

```
prepare(PrepareConfig(...))                 logs → a prepared data set
PreparedDataset(folder)                     open it
train(OnePiece(...), TrainingBatches(...))  a model
evaluate_models([folder], dataset, ...)     ranks, metrics, intervals
Recommender.from_pretrained(folder)         histories → recommendations
score(ScoreConfig(...))                     parquet → parquet
```

Names are imported when they are first used, so that ``import recsys`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys.cascade.recommender import Recommender
    from recsys.context.config import ContextConfig
    from recsys.context.loader import TrainingBatches
    from recsys.data.dataset import PreparedDataset
    from recsys.data.prepare import PrepareConfig, prepare
    from recsys.data.synthetic import SyntheticConfig, synthetic_world
    from recsys.evaluation.models import EvaluationConfig, evaluate_models
    from recsys.model.config import EncoderConfig, ReasonerConfig, RecommenderConfig
    from recsys.model.onepiece import OnePiece
    from recsys.retrieval.approximate import FaissIndex
    from recsys.retrieval.index import BruteForceIndex
    from recsys.schema import ColumnSpec, SplitSpec
    from recsys.scoring.batch import ScoreConfig, score
    from recsys.training.build import build_objective
    from recsys.training.loop import TrainConfig, train
    from recsys.training.objective import ObjectiveConfig
    from recsys.training.optim import OptimizerConfig

__all__ = [
    "BruteForceIndex",
    "ColumnSpec",
    "ContextConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "FaissIndex",
    "ObjectiveConfig",
    "OnePiece",
    "OptimizerConfig",
    "PrepareConfig",
    "PreparedDataset",
    "ReasonerConfig",
    "Recommender",
    "RecommenderConfig",
    "ScoreConfig",
    "SplitSpec",
    "SyntheticConfig",
    "TrainConfig",
    "TrainingBatches",
    "build_objective",
    "evaluate_models",
    "prepare",
    "score",
    "synthetic_world",
    "train",
]

_HOMES = {
    "cascade.recommender": ("Recommender",),
    "context.config": ("ContextConfig",),
    "context.loader": ("TrainingBatches",),
    "data.dataset": ("PreparedDataset",),
    "data.prepare": ("PrepareConfig", "prepare"),
    "data.synthetic": ("SyntheticConfig", "synthetic_world"),
    "evaluation.models": ("EvaluationConfig", "evaluate_models"),
    "model.config": ("EncoderConfig", "ReasonerConfig", "RecommenderConfig"),
    "model.onepiece": ("OnePiece",),
    "retrieval.approximate": ("FaissIndex",),
    "retrieval.index": ("BruteForceIndex",),
    "schema": ("ColumnSpec", "SplitSpec"),
    "scoring.batch": ("ScoreConfig", "score"),
    "training.build": ("build_objective",),
    "training.loop": ("TrainConfig", "train"),
    "training.objective": ("ObjectiveConfig",),
    "training.optim": ("OptimizerConfig",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name on its first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'recsys' has no attribute {name!r}; it has {__all__}.")
    value = getattr(importlib.import_module(f"recsys.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted({*globals(), *__all__})
