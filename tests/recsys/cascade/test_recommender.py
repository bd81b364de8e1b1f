import logging
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from recsys.batch import CandidateSet
from recsys.cascade.recommender import Recommender
from recsys.context.config import ContextConfig
from recsys.data.dataset import PreparedDataset
from recsys.model.config import DataSizes, EncoderConfig, ReasonerConfig, RecommenderConfig
from recsys.model.onepiece import OnePiece
from recsys.model.save import save_pretrained
from recsys.ranking.calibrate import Calibration, TaskCalibration
from recsys.retrieval.approximate import FaissIndex, HnswConfig
from recsys.schema import SCORE_COLUMNS


@pytest.fixture(scope="module")
def recommender(model_folder: Path) -> Recommender:
    return Recommender.from_pretrained(model_folder)


def sorted_rows(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values(["user_id", "rank"]).reset_index(drop=True)


def test_every_user_gets_k_unseen_items_best_first(
    recommender: Recommender, log: pd.DataFrame
) -> None:
    frame = recommender.recommend(log, 4)
    assert tuple(frame.columns) == SCORE_COLUMNS
    assert frame.groupby("user_id").size().tolist() == [4] * 60
    assert (frame["source"] == "retrieval").all()
    seen = set(zip(log["user_id"], log["item_id"], strict=True))
    assert not seen & set(zip(frame["user_id"], frame["item_id"], strict=True))
    for _, rows in frame.groupby("user_id"):
        assert rows["rank"].tolist() == [1, 2, 3, 4]
        assert rows["score"].is_monotonic_decreasing
    assert frame.attrs["notes"]["users_without_known_history"] == 0


def test_scores_are_the_inner_products_of_the_exported_vectors(
    recommender: Recommender, log: pd.DataFrame
) -> None:
    frame = recommender.recommend(log, 3, filter_seen=False)
    users, items = recommender.embed_users(log), recommender.embed_items()
    expected = (users @ items.T).stack().groupby(level=0).nlargest(3).to_numpy()
    np.testing.assert_allclose(sorted_rows(frame)["score"], expected, rtol=1e-4)


def test_every_kind_of_frame_and_a_prepared_data_set_give_the_same_rows(
    recommender: Recommender, log: pd.DataFrame, prepared: Path
) -> None:
    expected = sorted_rows(recommender.recommend(log, 3))
    for histories in (
        pl.DataFrame(log.to_dict("list")),
        pa.Table.from_pandas(log),
        log.astype({"user_id": "category", "item_id": "category"}),
        log.assign(timestamp=pd.to_datetime(log["timestamp"], unit="s"), extra=1),
        PreparedDataset(prepared),
    ):
        pd.testing.assert_frame_equal(sorted_rows(recommender.recommend(histories, 3)), expected)


def test_users_are_answered_in_the_order_asked_and_strangers_get_popular_items(
    recommender: Recommender, log: pd.DataFrame, prepared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = recommender.recommend(log, 2).set_index("user_id")
    for histories in (log, PreparedDataset(prepared)):
        with caplog.at_level(logging.WARNING):
            frame = recommender.recommend(histories, 2, users=["u41", "nobody", "u07", "u41"])
        assert frame["user_id"].tolist() == ["u41", "u41", "nobody", "nobody", "u07", "u07"]
        assert frame["source"].tolist()[2:4] == ["popular", "popular"]
        assert frame["item_id"][2] == log["item_id"].value_counts().index[0]
        known = frame[frame["user_id"] != "nobody"].set_index("user_id")
        pd.testing.assert_frame_equal(known, whole.loc[["u41", "u07"]])
        assert "users without known history: 1" in caplog.text
        assert frame.attrs["notes"]["users_without_known_history"] == 1
        caplog.clear()


def test_users_without_a_single_event_can_be_asked_for(
    recommender: Recommender, log: pd.DataFrame
) -> None:
    for histories in (log, log.iloc[:0]):
        frame = recommender.recommend(histories, 3, users=["nobody"])
        assert frame["source"].tolist() == ["popular"] * 3


def test_unknown_items_and_unusable_rows_are_counted_and_told(
    recommender: Recommender, log: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    new = pd.DataFrame(
        {
            "user_id": ["n1", "n1", "n2", None],
            "item_id": ["i1", "never seen", "never seen", "i1"],
            "timestamp": [1_700_000_000, 1_700_000_100, 1_700_000_000, 1_700_000_000],
            "behavior": ["view"] * 4,
        }
    )
    with caplog.at_level(logging.WARNING):
        frame = recommender.recommend(new, 2)
    assert frame["source"].tolist() == ["retrieval"] * 2 + ["popular"] * 2
    assert frame.attrs["notes"]["events_with_unknown_items"] == 2
    assert frame.attrs["notes"]["rejected_null_user_id"] == 1
    assert "events with unknown items: 2; rejected null user id: 1" in caplog.text


def test_a_future_event_changes_nothing_before_it(
    recommender: Recommender, log: pd.DataFrame
) -> None:
    moment = int(log["timestamp"].median())
    before = recommender.recommend(log, 3, as_of=moment)
    only = log[log["timestamp"] < moment]
    known = before[before["source"] == "retrieval"].reset_index(drop=True)
    pd.testing.assert_frame_equal(recommender.recommend(only, 3, as_of=moment), known)
    later = recommender.recommend(only, 3, as_of=moment + 10_000_000)
    assert not np.allclose(later["score"], known["score"])  # the gap to the moment is read


def test_allow_and_deny_lists_bind(
    recommender: Recommender, log: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        frame = recommender.recommend(
            log, 5, filter_seen=False, allow=["i1", "i2", "i3", "x"], deny=["i2", "y", "z"]
        )
    assert set(frame["item_id"]) == {"i1", "i3"}
    assert "unknown items in allow: 1; unknown items in deny: 2" in caplog.text
    with pytest.raises(ValueError, match=r"allow \(1 items, such as \['x'\]\)"):
        recommender.recommend(log, allow=["x"])


def test_integer_ids_come_back_as_integers(recommender: Recommender, log: pd.DataFrame) -> None:
    numbered = log.assign(user_id=log["user_id"].str[1:].astype(int))
    frame = recommender.recommend(numbered, 1)
    assert pd.api.types.is_integer_dtype(frame["user_id"])
    assert frame["user_id"].tolist() == list(range(60))
    asked = recommender.recommend(numbered, 1, users=[30, 4])
    assert asked["user_id"].tolist() == [30, 4]
    assert asked["item_id"].tolist() == frame.set_index("user_id").loc[[30, 4], "item_id"].tolist()


def test_similar_items_are_the_nearest_by_cosine_without_the_item_itself(
    recommender: Recommender,
) -> None:
    frame = recommender.similar_items(["i3", "i5"], k=4)
    vectors = recommender.embed_items()
    unit = vectors.div(np.linalg.norm(vectors, axis=1), axis=0)
    cosine = (unit @ unit.T).loc["i3"].drop("i3").nlargest(4)
    rows = frame[frame["item_id"] == "i3"]
    assert rows["similar_item_id"].tolist() == cosine.index.tolist()
    np.testing.assert_allclose(rows["score"], cosine, rtol=1e-5)
    with pytest.raises(ValueError, match=r"1 items that the model does not know, such as \['x'\]"):
        recommender.similar_items(["i3", "x"])


def test_embedded_items_and_users_are_indexed_by_their_ids(
    recommender: Recommender, log: pd.DataFrame
) -> None:
    assert recommender.embed_items().shape == (30, 8)
    two = recommender.embed_items(["i3", "i1"])
    assert two.index.tolist() == ["i3", "i1"]
    users = recommender.embed_users(log)
    assert users.shape == (60, 8)
    some = recommender.embed_users(log, users=["u07", "u01", "nobody"])
    assert sorted(some.index) == ["u01", "u07"]
    np.testing.assert_allclose(some.loc["u07"], users.loc["u07"], rtol=1e-4, atol=1e-5)


def test_a_saved_recommender_answers_bit_for_bit_as_before(
    recommender: Recommender, log: pd.DataFrame, tmp_path: Path
) -> None:
    recommender.save_pretrained(tmp_path / "copy")
    copy = Recommender.from_pretrained(tmp_path / "copy")
    pd.testing.assert_frame_equal(
        copy.recommend(log, 3), recommender.recommend(log, 3), check_exact=True
    )
    assert copy.context == recommender.context


def test_a_data_set_of_other_vocabularies_is_refused(
    recommender: Recommender, prepared: Path
) -> None:
    other = PreparedDataset(prepared)
    names = ["", "", *reversed(other.catalogue.item_ids.to_pylist()[2:])]
    object.__setattr__(other.catalogue, "item_ids", pa.array(names, pa.string()))
    with pytest.raises(ValueError, match="prepared with other vocabularies"):
        recommender.recommend(other)


def test_a_missing_column_is_named(recommender: Recommender, log: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="no column 'item_id'"):
        recommender.recommend(log.drop(columns="item_id"))


def test_the_index_can_be_exchanged(recommender: Recommender, log: pd.DataFrame) -> None:
    expected = recommender.recommend(log, 3)
    exact = recommender.retriever.index
    recommender.retriever.index = FaissIndex(
        recommender.retriever.item_vectors, recommender.retriever.recommendable
    )
    found = recommender.recommend(log, 3)
    recommender.retriever.index = exact
    assert (found["item_id"] == expected["item_id"]).mean() > 0.95


def test_users_come_back_in_the_order_of_their_ids(
    recommender: Recommender, log: pd.DataFrame
) -> None:
    shuffled = log.sample(frac=1, random_state=0)
    found = recommender.recommend(shuffled, 2)["user_id"].tolist()
    assert found == sorted(found)


@pytest.fixture(scope="module")
def ranking(ranking_folder: Path) -> Recommender:
    return Recommender.from_pretrained(ranking_folder)


CASCADE_COLUMNS = [
    *("user_id", "item_id", "rank", "score", "p_view", "p_cart", "retrieval_score", "source")
]


def test_a_model_that_can_rank_ranks_what_it_retrieved(
    ranking: Recommender, log: pd.DataFrame
) -> None:
    frame = ranking.recommend(log, 5, num_candidates=3)
    assert frame.columns.tolist() == CASCADE_COLUMNS
    assert frame["source"].tolist() == (["cascade"] * 3 + ["retrieval"] * 2) * 60
    ranked = frame[frame["source"] == "cascade"]
    assert (ranked["score"] == ranked["p_cart"]).all()
    assert frame["p_view"].isna().sum() == 2 * 60
    for _, rows in ranked.groupby("user_id"):
        assert rows["score"].is_monotonic_decreasing
    first = ranking.recommend(log, 5, stages="retrieval")
    assert tuple(first.columns) == SCORE_COLUMNS
    # The same items, the same inner products, in an order of their own.
    keys = ["user_id", "item_id"]
    both = frame.merge(first, on=keys, suffixes=("", "_first"))
    assert len(both) == len(frame)
    np.testing.assert_allclose(both["retrieval_score"], both["score_first"], rtol=1e-4, atol=1e-5)
    assert (both["rank"] != both["rank_first"]).any()


def test_the_ranking_equals_the_models_own_on_the_same_request(
    ranking: Recommender, log: pd.DataFrame
) -> None:
    user = "u07"
    frame = ranking.recommend(log, 4, users=[user], num_candidates=4)
    selection = ranking._select(log, [user], None)
    (bucket, rows), retriever = selection.parts[0], ranking.retriever
    _, context, _ = next(iter(retriever.batches(bucket, rows)))
    state = ranking.model.read(context)
    ids, _ = ranking._names(False).internal(frame["item_id"].tolist())
    logits = ranking.model.rank_of(state, CandidateSet(ids[None, None, None]))
    expected = logits[0, 0, 0].sigmoid().numpy()
    np.testing.assert_allclose(frame[["p_view", "p_cart"]], expected, rtol=1e-4)


def test_a_user_is_ranked_alike_alone_and_among_others(
    ranking: Recommender, log: pd.DataFrame
) -> None:
    whole = ranking.recommend(log, 6, num_candidates=5)
    alone = ranking.recommend(log, 6, users=["u41", "nobody"], num_candidates=5, batch_size=1)
    expected = whole[whole["user_id"] == "u41"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone.iloc[:6], expected, rtol=1e-4)
    stranger = alone.iloc[6:]
    assert stranger["source"].tolist() == ["popular"] * 6
    assert stranger[["p_view", "p_cart", "retrieval_score"]].isna().all(axis=None)


def test_a_final_score_may_be_a_task_or_a_formula(ranking: Recommender, log: pd.DataFrame) -> None:
    task = ranking.recommend(log, 3, final_score="view")
    assert (task["score"] == task["p_view"]).all()
    formula = ranking.recommend(log, 3, final_score="p_view * p_cart ** 2")
    expected = formula["p_view"] * formula["p_cart"] ** 2
    np.testing.assert_allclose(formula["score"], expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"final_score \('view'\) orders ranked items"):
        ranking.recommend(log, 3, final_score="view", stages="retrieval")


def test_a_folders_calibration_is_applied_and_saved_again(
    ranking: Recommender, ranking_folder: Path, log: pd.DataFrame, tmp_path: Path
) -> None:
    shutil.copytree(ranking_folder, tmp_path / "model")
    tasks = {"view": TaskCalibration(), "cart": TaskCalibration(slope=2.0, intercept=-1.0)}
    Calibration(tasks=tasks).save(tmp_path / "model")
    calibrated = Recommender.from_pretrained(tmp_path / "model")
    before, after = ranking.recommend(log, 3), calibrated.recommend(log, 3)
    assert before["item_id"].equals(after["item_id"])  # a positive slope keeps the order
    logit = np.log(before["p_cart"] / (1 - before["p_cart"]))
    np.testing.assert_allclose(after["p_cart"], 1 / (1 + np.exp(1 - 2 * logit)), rtol=1e-3)
    calibrated.save_pretrained(tmp_path / "again")
    again = Recommender.from_pretrained(tmp_path / "again").recommend(log, 3)
    pd.testing.assert_frame_equal(again, after, check_exact=True)


def test_a_model_with_preference_anchors_reads_them_wherever_histories_come_from(
    log: pd.DataFrame, prepared: Path, tmp_path: Path
) -> None:
    dataset = PreparedDataset(prepared)
    context = ContextConfig(max_history=4, anchors=("own",), anchor_length=3)
    config = RecommenderConfig(
        data=DataSizes.of(dataset.manifest, anchor_lengths=context.anchor_lengths),
        encoder=EncoderConfig(width=8, num_layers=1, max_history=4, init_std=0.5),
        reasoner=ReasonerConfig(num_steps=1, zero_init=False),
    )
    torch.manual_seed(0)
    model = OnePiece(config, dataset.catalogue).eval()
    save_pretrained(model, tmp_path / "model", prepared, context=asdict(context))
    recommender = Recommender.from_pretrained(tmp_path / "model")
    expected = recommender.recommend(log, 3)
    found = recommender.recommend(dataset, 3)
    pd.testing.assert_frame_equal(sorted_rows(found), sorted_rows(expected))
    recent = log.groupby("user_id").tail(4)  # what the anchors stand for is gone
    shorter = recommender.recommend(recent, 3, filter_seen=False)
    whole = recommender.recommend(log, 3, filter_seen=False)
    assert not np.allclose(shorter["score"], whole["score"])


def test_a_model_without_a_ranking_stage_says_so(
    recommender: Recommender, log: pd.DataFrame
) -> None:
    with pytest.raises(ValueError, match="needs a model with a ranking stage, and this one has"):
        recommender.recommend(log, stages="cascade")


def test_a_policy_binds_everyone_and_tells_what_it_did(
    ranking: Recommender, log: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    stock = [name for name in ranking.catalogue.item_ids.to_pylist()[2:] if name != "i1"]
    with caplog.at_level(logging.WARNING):
        policy = ranking.policy(available=[*stock, "new"], max_per_category=1, diversity=0.2)
    assert "unknown items in available: 1" in caplog.text
    assert [rule.name for rule in policy.rules] == ["available", "diversity", "category"]
    frame = ranking.recommend(log, 3, policy=policy, users=["u07", "u41", "nobody"])
    assert "i1" not in set(frame["item_id"])
    codes_of, index = ranking.catalogue.coarse, ranking.catalogue.index
    for _, rows in frame.groupby("user_id"):
        codes = [int(codes_of[index[item]]) for item in rows["item_id"]]
        assert len(set(codes)) == len(codes)
    assert frame.attrs["policy"]["available.users"] >= 1  # the stranger's popular items
    assert set(frame.attrs["policy"]) >= {"category.users", "category.items", "diversity.items"}


def test_an_approximate_index_tells_its_recall(model_folder: Path, log: pd.DataFrame) -> None:
    approximate = Recommender.from_pretrained(model_folder, hnsw=HnswConfig(num_links=4))
    assert approximate.recommend(log, 3).attrs["index_recall"] > 0.9
    exact = Recommender.from_pretrained(model_folder)
    assert "index_recall" not in exact.recommend(log, 3).attrs
