"""Frames and files take one path: models with features, domains, an order column."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from recsys.cascade.recommender import Recommender
from recsys.context.config import ContextConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.prepare import PrepareConfig, prepare
from recsys.model.config import DataSizes, EncoderConfig, RecommenderConfig
from recsys.model.onepiece import OnePiece
from recsys.model.save import save_pretrained
from recsys.schema import ColumnSpec, SplitSpec
from recsys.scoring.batch import ScoreConfig, score


def recommender_of(prepared: Path, folder: Path) -> Recommender:
    dataset = PreparedDataset(prepared)
    torch.manual_seed(0)
    encoder = EncoderConfig(width=8, num_layers=1, num_heads=2, max_history=6, init_std=0.5)
    config = RecommenderConfig(data=DataSizes.of(dataset.manifest), encoder=encoder)
    model = OnePiece(config, dataset.catalogue)
    context = asdict(ContextConfig(max_history=6))
    save_pretrained(model, folder, prepared, context=context)
    return Recommender.from_pretrained(folder)


def sorted_rows(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values(["user_id", "rank"]).reset_index(drop=True)


def test_declared_features_are_read_alike_from_frames_files_and_prepared_data(
    tiny_logs, prepared_tiny: Path, tmp_path: Path
) -> None:
    recommender = recommender_of(prepared_tiny, tmp_path / "model")
    events, users = pd.read_parquet(tiny_logs.events), pd.read_parquet(tiny_logs.users)
    expected = sorted_rows(recommender.recommend(events, 3, user_features=users))
    prepared = sorted_rows(recommender.recommend(PreparedDataset(prepared_tiny), 3))
    pd.testing.assert_frame_equal(prepared, expected, rtol=1e-4)
    config = ScoreConfig(
        model=tmp_path / "model",
        events=(str(tiny_logs.events),),
        users=(str(tiny_logs.users),),
        out=tmp_path / "scores",
        k=3,
    )
    score(config)
    pd.testing.assert_frame_equal(
        sorted_rows(pd.read_parquet(tmp_path / "scores")), expected, rtol=1e-4
    )
    without = sorted_rows(recommender.recommend(events, 3))
    assert not np.allclose(without["score"], expected["score"])  # the country is read


def test_users_of_several_domains_get_items_with_their_domain(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    events = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(12), 6),
            "item_id": random.integers(0, 6, size=72),
            "service": random.choice(["books", "food"], size=72),
            "timestamp": 1_700_000_000 + np.arange(72),
        }
    )
    events.to_parquet(tmp_path / "events.parquet", index=False)
    prepare(
        PrepareConfig(
            events=(str(tmp_path / "events.parquet"),),
            out=tmp_path / "data",
            columns=ColumnSpec(domain="service"),
        )
    )
    recommender = recommender_of(tmp_path / "data", tmp_path / "model")
    allow = [("books", i) for i in range(6)]
    frame = recommender.recommend(events, 2, allow=allow, filter_seen=False)
    assert set(frame["domain"]) == {"books"}
    assert frame["item_id"].between(0, 5).all()
    assert len(frame) == 24
    similar = recommender.similar_items([("books", 1)], k=2)
    assert list(similar.columns)[:4] == ["item_id", "domain", "similar_item_id", "similar_domain"]
    assert recommender.embed_items([("food", 2)]).index.tolist() == [("2", "food")]


def test_a_model_of_ordered_logs_takes_no_moment(tmp_path: Path) -> None:
    events = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(8), 5),
            "item_id": np.arange(40) % 7,
            "place": np.tile(np.arange(5), 8),
        }
    )
    events.to_parquet(tmp_path / "events.parquet", index=False)
    prepare(
        PrepareConfig(
            events=(str(tmp_path / "events.parquet"),),
            out=tmp_path / "data",
            columns=ColumnSpec(timestamp=None, order="place"),
            split=SplitSpec(kind="leave_one_out"),
        )
    )
    recommender = recommender_of(tmp_path / "data", tmp_path / "model")
    shuffled = events.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(
        recommender.recommend(shuffled, 2), recommender.recommend(events, 2)
    )
    with pytest.raises(ValueError, match=r"as_of \(7\) needs times"):
        recommender.recommend(events, as_of=7)
