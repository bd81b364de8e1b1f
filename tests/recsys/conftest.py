"""A small log, prepared, and an untrained model of it: what serving tests start from."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from recsys.context.config import ContextConfig
from recsys.context.descriptors import situation_features
from recsys.data.dataset import PreparedDataset
from recsys.data.prepare import PrepareConfig, prepare
from recsys.model.config import (
    DataSizes,
    EncoderConfig,
    RankerConfig,
    ReasonerConfig,
    RecommenderConfig,
)
from recsys.model.onepiece import OnePiece
from recsys.model.save import save_pretrained


@pytest.fixture(scope="session")
def log() -> pd.DataFrame:
    """60 users, 3 to 12 events each, on 30 items: raw events in time order."""
    random = np.random.default_rng(0)
    users = np.repeat(np.arange(60), random.integers(3, 13, size=60))
    times = 1_700_000_000 + np.sort(random.integers(0, 10_000_000, size=len(users)))
    return pd.DataFrame(
        {
            "user_id": [f"u{u:02d}" for u in random.permutation(users)],
            "item_id": [f"i{i}" for i in random.zipf(1.4, size=len(users)) % 30],
            "timestamp": times,
            "behavior": random.choice(["view", "cart"], size=len(users)),
        }
    )


@pytest.fixture(scope="session")
def prepared(log: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log as a prepared data set of three buckets."""
    folder = tmp_path_factory.mktemp("prepared")
    log.to_parquet(folder / "events.parquet", index=False)
    config = PrepareConfig(
        events=(str(folder / "events.parquet"),), out=folder / "data", num_buckets=3
    )
    prepare(config)
    return folder / "data"


@pytest.fixture(scope="session")
def model_folder(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of the log, saved."""
    dataset = PreparedDataset(prepared)
    torch.manual_seed(0)
    context = ContextConfig(max_history=10)
    config = RecommenderConfig(
        data=DataSizes.of(
            dataset.manifest, situation=situation_features(dataset.manifest, context)
        ),
        encoder=EncoderConfig(width=8, num_layers=1, num_heads=2, max_history=10, init_std=0.5),
        reasoner=ReasonerConfig(num_steps=1),
    )
    model = OnePiece(config, dataset.catalogue).eval()
    folder = tmp_path_factory.mktemp("model") / "model"
    save_pretrained(model, folder, prepared, context=asdict(context))
    return folder


@pytest.fixture(scope="session")
def ranking_folder(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of the log with a ranking stage for views and carts, saved."""
    folder = tmp_path_factory.mktemp("ranking")
    config = PrepareConfig(
        events=(str(prepared.parent / "events.parquet"),),
        out=folder / "data",
        funnel=("view", "cart"),
        target_behavior="cart",
        num_buckets=3,
    )
    prepare(config)
    dataset = PreparedDataset(folder / "data")
    torch.manual_seed(0)
    context = ContextConfig(max_history=10, group_size=4)
    situation = situation_features(dataset.manifest, context)
    model = OnePiece(
        RecommenderConfig(
            data=DataSizes.of(dataset.manifest, situation=situation),
            encoder=EncoderConfig(width=8, num_layers=1, num_heads=2, max_history=10, init_std=0.5),
            reasoner=ReasonerConfig(num_steps=1),
            ranker=RankerConfig(decoder="own"),
        ),
        dataset.catalogue,
    ).eval()
    for parameter in model.ranker.parameters():  # what starts at zero would hide the candidates
        torch.nn.init.normal_(parameter, std=0.5)
    save_pretrained(model, folder / "model", folder / "data", context=asdict(context))
    return folder / "model"
