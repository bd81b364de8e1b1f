"""The synthetic world: its tables, its truth, and that it can be learned."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data import synthetic as module
from recsys.data.cooccurrence import cooccurrence
from recsys.data.synthetic import (
    START_TIME,
    SyntheticConfig,
    World,
    synthetic_events,
    synthetic_world,
    write,
    write_streamed,
)
from recsys.data.synthetic_items import ITEM_ID_START
from recsys.data.text import text_vectors

SMALL = SyntheticConfig(num_users=40, num_items=90, num_events=1_500, num_days=14)
MIDDLE = SyntheticConfig(num_users=600, num_items=300, num_events=18_000)
SEARCH = replace(
    MIDDLE, num_topics=6, num_items=600, search_share=0.9, query_share=0.6, transition_share=0.1
)
TABLES = ("events", "items", "users", "impressions", "causes")


@pytest.fixture(scope="module")
def small() -> World:
    return synthetic_world(SMALL)


@pytest.fixture(scope="module")
def middle() -> World:
    return synthetic_world(MIDDLE)


@pytest.fixture(scope="module")
def search() -> World:
    return synthetic_world(SEARCH)


def with_causes(world: World) -> pd.DataFrame:
    return pd.concat([world.events.to_pandas(), world.causes.to_pandas()], axis=1)


def sort_rows(table: pa.Table) -> pd.DataFrame:
    names = ["timestamp", "user_id", "item_id", "behavior"]
    return table.to_pandas().sort_values(names).reset_index(drop=True)


def test_the_number_of_events_is_exact_and_all_times_lie_in_order() -> None:
    for count in (40, 41, 1_500):
        world = synthetic_world(replace(SMALL, num_events=count))
        times = world.events["timestamp"].to_numpy()
        assert len(times) == count
        assert (np.diff(times) >= 0).all()
        assert times[0] >= START_TIME


def test_the_same_seed_gives_the_same_world_and_another_seed_another(small: World) -> None:
    again, other = synthetic_world(SMALL), synthetic_world(replace(SMALL, seed=1))
    for name in TABLES:
        assert getattr(again, name).equals(getattr(small, name))
        assert not getattr(other, name).equals(getattr(small, name))


@pytest.mark.parametrize(
    ("change", "start"),
    [({}, "4fef8618546fe3e8"), ({"num_domains": 2, "dirty": True}, "6756f6bc91037b99")],
)
def test_new_options_leave_the_worlds_of_before_as_they_were(change, start) -> None:
    world = synthetic_world(replace(SMALL, **change))
    content = json.dumps([getattr(world, name).to_pydict() for name in TABLES])
    assert hashlib.sha256(content.encode()).hexdigest().startswith(start)


def test_the_stream_holds_the_rows_of_the_world_whatever_the_batch_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "BLOCK_EVENTS", 300)  # several blocks of users
    world = synthetic_world(SMALL)
    for rows in (7, 1_000_000):
        stream = pa.Table.from_batches(synthetic_events(SMALL, batch_rows=rows))
        assert sort_rows(stream).equals(sort_rows(world.events))


def test_a_user_never_has_two_events_at_once_so_that_order_is_certain(middle: World) -> None:
    assert not middle.events.to_pandas().duplicated(["user_id", "timestamp"]).any()


def test_causes_come_before_their_effects_and_belong_to_the_same_user(middle: World) -> None:
    rows = with_causes(middle)
    caused = rows[rows.cause_event.notna()]
    causing = rows.loc[caused.cause_event.astype(int)]
    assert (causing.event.to_numpy() < caused.event.to_numpy()).all()
    assert (causing.user_id.to_numpy() == caused.user_id.to_numpy()).all()
    assert set(caused.kind) == {"transition", "repeat", "funnel"}
    assert rows[rows.kind.isin(["transition", "repeat", "funnel"])].cause_event.notna().all()


def test_every_kind_of_cause_says_the_truth(middle: World) -> None:
    rows = with_causes(middle)
    truth, users = middle.item_truth, middle.user_truth
    rows["item"] = rows.item_id - ITEM_ID_START
    of = {kind: part for kind, part in rows.groupby("kind")}
    assert set(of) == {"taste", "transition", "trend", "repeat", "noise", "funnel"}

    def causing(kind: str) -> pd.DataFrame:
        return rows.loc[of[kind].cause_event.astype(int)]

    follow_ups = truth.follow_ups[causing("transition").item]
    assert (follow_ups == of["transition"].item.to_numpy()[:, None]).any(1).all()
    for kind in ("repeat", "funnel"):
        assert (causing(kind).item.to_numpy() == of[kind].item.to_numpy()).all()
    tastes = users.tastes[of["taste"].user_id - 100_000]
    assert (tastes == truth.topic[of["taste"].item][:, None]).any(1).all()
    assert np.isin(of["trend"].item, truth.trending).all()


def test_a_query_is_answered_by_what_its_searchers_want_in_those_days(search: World) -> None:
    rows = with_causes(search)
    asked = rows[rows.kind == "query"]
    assert 0.3 < len(asked) / len(rows) < 0.5
    assert asked["query"].notna().all()
    assert asked.cause_event.isna().all()
    # Six days apart the same phrase has other answers; inside a period at most five.
    period = (asked.timestamp - START_TIME) // 86_400 // 6
    answers = asked.groupby(["query", period]).item_id.nunique()
    assert answers.max() == 5
    assert asked.groupby("query").item_id.nunique().median() > 10
    assert {"query"} == set(search.impressions.column_names) - set(
        synthetic_world(SMALL).impressions.column_names
    )


def test_recent_clicks_of_other_searchers_tell_more_than_taste_or_all_clicks_of_the_query(
    search: World,
) -> None:
    rows = with_causes(search)
    rows = rows[(rows.behavior == "click") & rows["query"].notna()].reset_index(drop=True)
    rows = rows[~rows.duplicated(["user_id", "item_id"])]  # a user's repeats are no news
    day = (rows.timestamp - START_TIME) // 86_400
    hits: dict[str, list[bool]] = {"recent": [], "ever": [], "taste": []}
    for at in rows.index[day > 50][::7]:
        now, before = rows.loc[at], rows[day < day[at]]
        asked = before[before["query"] == now["query"]]
        known = {
            "recent": asked[day[asked.index] >= day[at] - 4],
            "ever": asked,
            "taste": before[before.topic == now.topic],
        }
        for name, clicks in known.items():
            hits[name].append(now.item_id in clicks.item_id.value_counts().index[:5])
    share = {name: np.mean(found) for name, found in hits.items()}

    assert share["recent"] > 2 * share["ever"]
    assert share["recent"] > 2 * share["taste"]


def test_the_funnel_nests_and_favourites_stand_outside(middle: World) -> None:
    rows = with_causes(middle)
    funnel = rows[rows.kind == "funnel"]
    causes = rows.loc[funnel.cause_event.astype(int)].behavior.to_numpy()
    assert set(zip(funnel.behavior, causes, strict=True)) == {
        ("cart", "click"),
        ("order", "cart"),
        ("favorite", "click"),
    }
    counts = rows.behavior.value_counts()
    assert counts["click"] > counts["cart"] > counts["order"] > 0


def test_carts_are_likelier_where_the_price_suits(middle: World) -> None:
    rows = with_causes(middle)
    tier = middle.item_truth.tier[rows.item_id - ITEM_ID_START]
    suits = tier == middle.user_truth.tier[rows.user_id - 100_000]
    is_click = (rows.behavior == "click").to_numpy()
    carted = rows.index.isin(rows[rows.behavior == "cart"].cause_event)
    assert carted[is_click & suits].mean() > 1.5 * carted[is_click & ~suits].mean()


def test_no_item_is_touched_before_its_release(middle: World) -> None:
    times = (middle.events["timestamp"].to_numpy() - START_TIME) // 86_400
    time_bin = np.minimum(times, MIDDLE.num_days - 1) * 12 // MIDDLE.num_days
    item = middle.events["item_id"].to_numpy() - ITEM_ID_START
    assert (time_bin >= middle.item_truth.release_bin[item]).all()
    assert middle.item_truth.release_bin.max() > 0


def test_the_higher_position_is_clicked_more_and_a_list_has_at_most_one_click(
    middle: World,
) -> None:
    shown = middle.impressions.to_pandas()
    rate = shown.groupby("position").click.mean()
    assert rate[0] > 1.5 * rate[4] > 1.5 * rate[9]
    assert shown.groupby("request_id").click.sum().isin([0, 1]).all()
    assert 0.7 < shown.groupby("request_id").click.sum().mean() < 0.9
    assert (shown.click >= shown.cart).all()
    assert (shown.cart >= shown.order).all()
    assert not shown.duplicated(["request_id", "item_id"]).any()


def test_a_clicked_impression_is_a_click_of_the_log(middle: World) -> None:
    keys = ["user_id", "item_id", "timestamp"]
    events, shown = middle.events.to_pandas(), middle.impressions.to_pandas()
    clicks = events[events.behavior == "click"][keys]
    assert len(shown[shown.click == 1].merge(clicks, on=keys)) == shown.click.sum()


def test_tables_describe_every_user_and_item_once(middle: World) -> None:
    assert middle.items["item_id"].to_pylist() == list(range(ITEM_ID_START, ITEM_ID_START + 300))
    assert len(set(middle.users["user_id"].to_pylist())) == 600
    categories = middle.items["categories"].to_pylist()
    assert all(path[2].startswith(path[1] + "/") for path in categories)
    assert {path[1] for path in categories} == set(middle.item_truth.topics)


def test_several_domains_share_users_and_number_their_items_apart() -> None:
    world = synthetic_world(replace(SMALL, num_domains=2))
    events, items = world.events.to_pandas(), world.items.to_pandas()
    assert set(events.domain) == set(items.domain) == {"service-a", "service-b"}
    assert not items.duplicated(["domain", "item_id"]).any()
    assert items.duplicated("item_id").any()
    assert len(events.merge(items, on=["domain", "item_id"])) == len(events)
    assert (events.groupby("user_id").domain.nunique() == 2).any()
    assert "domain" in world.impressions.column_names


def test_dirt_is_appended_and_leaves_the_clean_rows_alone(small: World) -> None:
    dirty = synthetic_world(replace(SMALL, dirty=True)).events
    clean = small.events.num_rows
    assert dirty.slice(0, clean).combine_chunks().equals(small.events)
    bad = dirty.slice(clean).to_pandas()
    assert bad.user_id.isna().any()
    assert bad.item_id.isna().any()
    assert bad.timestamp.isna().any()
    assert (bad.timestamp > START_TIME * 2).any() or (bad.timestamp < 0).any()
    assert len(bad) < 0.01 * clean


def test_written_files_read_back_and_no_temporary_name_stays(small: World, tmp_path) -> None:
    write(small, tmp_path)
    for name in TABLES:
        assert pq.read_table(tmp_path / f"{name}.parquet").equals(getattr(small, name))
    assert len(list(tmp_path.iterdir())) == 5


def test_a_streamed_folder_holds_the_same_rows_in_several_files(small: World, tmp_path) -> None:
    write_streamed(SMALL, tmp_path, rows_per_file=400)
    assert sort_rows(pq.read_table(tmp_path / "events")).equals(sort_rows(small.events))
    assert pq.read_table(tmp_path / "items.parquet").equals(small.items)
    assert not list(tmp_path.rglob("*.tmp"))


def first_test_targets(world: World) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training clicks, and the first click of each known user in the last tenth of the log."""
    events = world.events.to_pandas()
    clicks = events[events.behavior == "click"].sort_values(["user_id", "timestamp"])
    edge = events.timestamp.quantile(0.9)
    train, test = clicks[clicks.timestamp < edge], clicks[clicks.timestamp >= edge]
    return train, test[test.user_id.isin(train.user_id)].groupby("user_id").first()


def test_the_last_item_predicts_the_next_one_far_better_than_popularity_does(
    middle: World,
) -> None:
    train, target = first_test_targets(middle)
    item = train.item_id.to_numpy() - ITEM_ID_START + 2
    graph = cooccurrence(train.user_id.to_numpy(), item, num_items=302, window=1)
    last = train.groupby("user_id").item_id.last()[target.index].to_numpy() - ITEM_ID_START + 2
    wanted = target.item_id.to_numpy() - ITEM_ID_START + 2
    popular = np.argsort(-np.bincount(item, minlength=302), kind="stable")[:10]
    ranked = np.argsort(-graph[last].toarray(), axis=1, kind="stable")[:, :10]
    recall = (ranked == wanted[:, None]).any(1).mean()
    floor = np.isin(wanted, popular).mean()
    assert recall > 0.15
    assert recall > floor + 0.07


def test_texts_of_consecutive_clicks_are_more_alike_than_texts_at_random(middle: World) -> None:
    train, _ = first_test_targets(middle)
    vectors = text_vectors(middle.items["text"].to_pylist(), width=32)
    item = train.item_id.to_numpy() - ITEM_ID_START
    same_user = np.diff(train.user_id.to_numpy()) == 0
    near = (vectors[item[:-1]] * vectors[item[1:]]).sum(1)[same_user].mean()
    shuffled = np.random.default_rng(0).permutation(item)
    assert near > 2 * (vectors[item] * vectors[shuffled]).sum(1).mean()


def test_tastes_move_with_the_weekday(middle: World) -> None:
    rows = with_causes(middle)
    day = (rows.timestamp - START_TIME) // 86_400 % 7
    topic = middle.item_truth.topic[rows.item_id - ITEM_ID_START]
    for_weekends = (topic % 4 == 0)[rows.kind == "taste"]
    weekend = (day >= 5)[rows.kind == "taste"]
    assert for_weekends[weekend].mean() > 1.3 * for_weekends[~weekend].mean()


@pytest.mark.parametrize("config", [
    SyntheticConfig(num_users=1, num_items=6, num_events=1, num_days=1),
    SyntheticConfig(num_users=3, num_items=12, num_events=60, num_days=2, num_domains=2),
    SyntheticConfig(num_users=5, num_items=400, num_events=50, num_topics=30, impression_share=0),
])  # fmt: skip
def test_extreme_sizes_work(config: SyntheticConfig) -> None:
    assert synthetic_world(config).events.num_rows == config.num_events


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_users": 0}, r"num_users \(0\)"),
        ({"num_events": 39}, r"num_events \(39\).*num_users \(40\)"),
        ({"num_items": 11, "num_domains": 2}, r"num_items \(11\)"),
        ({"repeat_share": 0.9}, r"0\.9"),
        ({"noise_share": -0.1}, r"-0\.1"),
        ({"impression_share": 1.5}, r"impression_share \(1\.5\)"),
        ({"search_share": -0.5}, r"search_share \(-0\.5\)"),
    ],
)
def test_bad_settings_are_named(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_a_file_must_hold_a_row(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"rows_per_file \(0\)"):
        write_streamed(SMALL, tmp_path, rows_per_file=0)
