"""Nothing that training sees depends on what happens later: a list of claims, one a test.

A small log is prepared three times with the same split times: as it is; with a future planted into
the validation and test parts, by every user and by new ones; with one planted into the test part
only. Each test names what must not change.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from recsys.context.config import ContextConfig
from recsys.context.loader import TrainingBatches, evaluation_batches, history_batches
from recsys.data.cooccurrence import cooccurrence
from recsys.data.dataset import PreparedDataset
from recsys.data.negatives import TableSampler
from recsys.data.prepare import PrepareConfig, prepare
from recsys.evaluation.baselines import (
    TrainingEvents,
    item_knn_scorer,
    last_item_scorer,
    popularity,
    recent_popularity,
)
from recsys.schema import ColumnSpec, SplitSpec

START = 1_700_000_000
DAY = 86_400
T1, T2 = START + 20 * DAY, START + 25 * DAY
FUNNEL = ("click", "cart", "order")
USERS, ITEMS = 24, 18


def past() -> pd.DataFrame:
    """Events of 30 days: 24 users, 15 of the 18 items of the table, two shops."""
    random = np.random.default_rng(3)
    count = 400
    item = (random.random(count) ** 2 * 15).astype(int)
    return pd.DataFrame(
        {
            "user_id": [f"u{u:02d}" for u in random.permutation(np.arange(count) % USERS)],
            "item_id": [f"i{i}" for i in item],
            "timestamp": np.sort(random.integers(START, START + 30 * DAY, count)),
            "behavior": random.choice([*FUNNEL, "favourite"], count, p=[0.5, 0.2, 0.2, 0.1]),
            "shop": ["food" if i % 3 else "books" for i in item],
            "device": random.choice(["phone", "desk"], count),
            "price": random.random(count),
        }
    )


def future(since: int) -> pd.DataFrame:
    """What would show anywhere: rare items made popular, pairs never seen, new names, wild numbers.

    By every user of the log and by users whom only the table knows.
    """
    rows = []
    for u in range(USERS + 6):
        known = [("i14", "food"), ("i13", "food"), ("i17", "food")]  # the last is never trained
        for step, (item, shop) in enumerate([*known, ("new", "food"), ("new", "planted")] * 3):
            rows.append(
                {
                    "user_id": f"u{u:02d}",
                    "item_id": item,
                    "timestamp": since + 60 * step + u,
                    "behavior": ("order", "planted", "click")[step % 3],
                    "shop": shop,
                    "device": ("desk", "planted")[step % 2],
                    "price": 1e9,
                }
            )
    return pd.DataFrame(rows)


def lists_of(events: pd.DataFrame) -> pd.DataFrame:
    """A list of four items five seconds before every event of the funnel: that item and others."""
    rows = []
    for number, event in enumerate(events[events.behavior.isin(FUNNEL)].itertuples()):
        others = [f"i{(number * 3 + place) % ITEMS}" for place in range(3)]
        for item in dict.fromkeys([*others, event.item_id]):
            level = FUNNEL.index(event.behavior) + 1 if item == event.item_id else 0
            known = item[1:].isdigit()
            rows.append(
                {
                    "request_id": f"{event.user_id} {event.timestamp}",
                    "user_id": event.user_id,
                    "item_id": item,
                    "shop": ("food" if int(item[1:]) % 3 else "books") if known else event.shop,
                    "timestamp": event.timestamp - 5,
                    "device": event.device,
                    **{name: int(level > place) for place, name in enumerate(FUNNEL)},
                }
            )
    return pd.DataFrame(rows)


def write(folder: Path, events: pd.DataFrame, lists: pd.DataFrame | None = None) -> PreparedDataset:
    """Prepare events with the same tables and every kind of feature declared."""
    folder.mkdir(parents=True)
    ids = range(ITEMS)
    items = pd.DataFrame(
        {
            "item_id": [f"i{i}" for i in ids],
            "shop": ["food" if i % 3 else "books" for i in ids],
            "category": [f"c{i}" for i in ids],
            "tags": [[f"t{i % 4}", f"only{i}"] for i in ids],
            "weight": [float(i**3) for i in ids],
            "title": [f"thing number{i} of kind{i % 5}" for i in ids],
        }
    )
    users = pd.DataFrame(
        {
            "user_id": [f"u{u:02d}" for u in range(USERS + 6)],
            "country": [("de", "fr", "it")[u % 3] if u < USERS else f"c{u}" for u in range(30)],
            "age": [20.0 + u if u < USERS else 1e6 for u in range(30)],
        }
    )
    tables = {"events": events, "items": items, "users": users}
    tables |= {} if lists is None else {"impressions": lists}
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
    columns = ColumnSpec(
        domain="shop",
        event_features=("device", "price"),
        situation=("device",),
        item_features=("category", "tags", "weight", "title"),
        user_features=("country", "age"),
    )
    values: dict[str, Any] = {
        "columns": columns,
        "split": SplitSpec(validation_time=T1, test_time=T2),
        "funnel": FUNNEL,
        "target_behavior": "order",
        "text_features": ("title",),
        "text_width": 3,
        "coarse": "cooccurrence",
        "num_coarse": 4,
        "num_buckets": 2,
        "threads": 1,
        "negative_feedback": lists is not None,
    }
    values |= {name: (str(folder / f"{name}.parquet"),) for name in tables}
    prepare(PrepareConfig(out=folder / "data", **values))
    return PreparedDataset(folder / "data")


@dataclass(frozen=True)
class Worlds:
    """The same past with different futures."""

    plain: PreparedDataset
    planted: PreparedDataset
    """Otherwise from T1 on."""
    later: PreparedDataset
    """Otherwise from T2 on."""

    def differ(self, name: str) -> bool:
        """Whether a property of the manifest tells plain and planted apart."""
        return bool(getattr(self.plain.manifest, name) != getattr(self.planted.manifest, name))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    folder, events = tmp_path_factory.mktemp("worlds"), past()
    train, early = events[events.timestamp < T1], events[events.timestamp < T2]
    return Worlds(
        plain=write(folder / "plain", events),
        planted=write(folder / "planted", pd.concat([train, future(T1), future(T2)])),
        later=write(folder / "later", pd.concat([early, future(T2)])),
    )


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor of a batch, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from tensors(value[key])
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))


def equal(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


# --- the planted future is there, and is seen where it may be ------------------------------------


def test_the_planted_future_is_in_the_log(worlds: Worlds) -> None:
    """Else the rest of this file would say nothing."""
    for name in ("num_users", "rows_out", "counts", "hashes"):
        assert worlds.differ(name), name
    counts = worlds.planted.manifest.counts
    assert counts["events.train"] == worlds.plain.manifest.counts["events.train"] > 200
    assert counts["events.unknown_item"] > 100
    assert counts["behavior.planted"] > 100


# --- what is learnt from events ------------------------------------------------------------------


def test_vocabularies_of_items_behaviors_domains_and_features(worlds: Worlds) -> None:
    plain, planted = worlds.plain, worlds.planted
    assert plain.catalogue.item_ids.equals(planted.catalogue.item_ids)
    assert plain.vocabularies == planted.vocabularies
    for name in ("num_items", "num_trained_items", "behaviors", "domains"):
        assert not worlds.differ(name), name
    assert "planted" not in str(planted.vocabularies)


def test_how_often_items_were_trained_and_how_negatives_are_drawn(worlds: Worlds) -> None:
    counts = [world.catalogue.train_count for world in (worlds.plain, worlds.planted)]
    assert torch.equal(*counts)
    ids = torch.arange(len(counts[0]))
    assert torch.equal(*(TableSampler(c, "popularity").log_q(ids) for c in counts))


def test_coarse_codes_clustered_from_cooccurrence(worlds: Worlds) -> None:
    assert torch.equal(worlds.plain.catalogue.coarse, worlds.planted.catalogue.coarse)
    assert not worlds.differ("num_coarse")
    assert len(worlds.plain.catalogue.coarse.unique()) > 3  # there is something to change


def test_means_and_scales_of_numbers(worlds: Worlds) -> None:
    """Of events (a price of 1e9 was planted), items and users (an age of 1e6 was)."""
    for name in ("event_features", "item_features", "user_features"):
        assert not worlds.differ(name), name
    numbers = {
        f.name: f
        for f in (
            *worlds.planted.manifest.event_features,
            *worlds.planted.manifest.item_features,
            *worlds.planted.manifest.user_features,
        )
        if f.kind == "numeric"
    }
    assert set(numbers) == {"price", "weight", "age"}
    assert numbers["price"].mean < 1
    assert numbers["age"].mean < 50


def test_item_features_and_text_vectors(worlds: Worlds) -> None:
    plain, planted = worlds.plain.catalogue, worlds.planted.catalogue
    assert set(plain.values) == {"category", "weight", "title"}
    assert equal(plain.values, planted.values)
    assert equal(plain.lists, planted.lists)


def test_popularity_overall_and_of_the_last_days(worlds: Worlds) -> None:
    events = [TrainingEvents.of(world) for world in (worlds.plain, worlds.planted)]
    assert np.array_equal(*(popularity(e) for e in events))
    assert np.array_equal(*(recent_popularity(e, days=3) for e in events))


@pytest.mark.parametrize("kind", ["cosine", "swing"])
def test_cooccurrence_of_items(worlds: Worlds, kind: Any) -> None:
    graphs = []
    for world in (worlds.plain, worlds.planted):
        user, item = world.training_events("item")
        size = world.manifest.num_items
        graphs.append(cooccurrence(user, item, num_items=size, kind=kind))
    assert graphs[0].nnz > 50
    assert (graphs[0] != graphs[1]).nnz == 0


@pytest.mark.parametrize("fit", [last_item_scorer, item_knn_scorer])
def test_baselines_that_read_neighbours(worlds: Worlds, fit: Any) -> None:
    batch = next(
        evaluation_batches(worlds.plain, ContextConfig(), part="validation", batch_size=99)
    )
    stop = worlds.plain.manifest.num_items
    scores = [
        fit(TrainingEvents.of(world)).score(batch, 0, stop)
        for world in (worlds.plain, worlds.planted)
    ]
    assert equal(*scores)
    assert len(scores[0]["score"].unique()) > 10


# --- what the model reads ------------------------------------------------------------------------


@pytest.mark.parametrize("block_by", ["none", "session", "domain", "behavior"])
def test_every_training_batch_contexts_and_labels(worlds: Worlds, block_by: Any) -> None:
    """Histories, user features, situations, next items, next items of each task."""
    everything = ("hour", "weekday", "month", "gap", "session", "domain")
    config = ContextConfig(
        max_history=60, requests_per_row=5, block_by=block_by, situation=everything
    )
    streams = [
        list(TrainingBatches(world, config, rows=5).epoch(1))
        for world in (worlds.plain, worlds.planted)
    ]
    assert equal(*streams)
    requests = streams[0][0][0].requests
    assert set(requests.situation) == {*everything, "device"}
    assert requests.is_real.any()


def test_what_a_validation_request_sees(worlds: Worlds) -> None:
    """Events from T2 on, the user's own and those of others, change no request before T2."""
    config = ContextConfig(max_history=8, block_by="session", situation=("gap", "session"))
    streams = [
        list(evaluation_batches(world, config, part="validation", batch_size=99))
        for world in (worlds.plain, worlds.later)
    ]
    assert equal([b.context for b in streams[0]], [b.context for b in streams[1]])
    assert equal([b.seen for b in streams[0]], [b.seen for b in streams[1]])
    assert sum(len(batch.target) for batch in streams[0]) > 5


def test_what_scoring_as_of_a_moment_sees(worlds: Worlds) -> None:
    config = ContextConfig(max_history=8, block_by="behavior", situation=("gap", "session"))
    found = []
    for world in (worlds.plain, worlds.later):
        users: dict[str, list[Tensor]] = {}
        for bucket in world.buckets:
            names = bucket.user_ids.to_pylist()
            options = {"as_of": T2, "batch_size": 1}
            for rows, context, seen in history_batches(bucket, world.manifest, config, **options):
                users[names[int(rows)]] = [*tensors(context), seen]
        found.append(users)
    assert len(found[0]) == USERS
    for name, values in found[0].items():
        assert equal(values, found[1][name]), name


def test_a_test_request_sees_all_events_before_its_target_and_none_after(worlds: Worlds) -> None:
    for batch in evaluation_batches(worlds.plain, ContextConfig(), part="test", batch_size=99):
        history, requests = batch.context.history, batch.context.requests
        assert torch.equal(requests.cut[:, 0], history.lengths)
        assert torch.equal(history.lengths, batch.history_length.clamp(max=200))
        late = history.timestamp > requests.timestamp
        assert not (late & history.is_real).any()


# --- lists that were shown -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedDataset, PreparedDataset]:
    """The same past with different lists and events from T1 on; what was passed over is read."""
    folder, events = tmp_path_factory.mktemp("shown"), past()
    planted = pd.concat([events[events.timestamp < T1], future(T1 + 60)])
    return (
        write(folder / "plain", events, lists_of(events)),
        write(folder / "planted", planted, lists_of(planted)),
    )


def test_what_training_learns_beside_negative_feedback(
    shown: tuple[PreparedDataset, PreparedDataset],
) -> None:
    plain, planted = shown
    assert plain.manifest.num_impressions != planted.manifest.num_impressions
    assert plain.manifest.behaviors == planted.manifest.behaviors
    assert plain.vocabularies == planted.vocabularies
    assert plain.catalogue.item_ids.equals(planted.catalogue.item_ids)
    assert torch.equal(plain.catalogue.train_count, planted.catalogue.train_count)
    assert torch.equal(plain.catalogue.coarse, planted.catalogue.coarse)
    assert np.array_equal(*(world.training_events("item")[1] for world in shown))
    skips = plain.manifest.codes_at_least("skip")
    assert sum(len(bucket.places_of(skips)) for bucket in plain.buckets) > 100


def test_every_training_batch_of_histories_with_negative_feedback(
    shown: tuple[PreparedDataset, PreparedDataset],
) -> None:
    config = ContextConfig(max_history=120, requests_per_row=5)
    streams = [list(TrainingBatches(world, config, rows=5).epoch(0)) for world in shown]
    assert equal(*streams)
    skip = 3 + shown[0].manifest.behaviors.index("skip")
    assert any((context.history.behavior == skip).any() for context, _ in streams[0])


def test_every_list_that_ranking_trains_on(shown: tuple[PreparedDataset, PreparedDataset]) -> None:
    """What each request sees, when it was, its situation, its candidates, what became of them."""
    config = ContextConfig(
        max_history=120, requests_per_row=99, candidates="impressions", group_size=4, groups=1
    )
    found = []
    for world in shown:
        lists = []
        for context, labels in TrainingBatches(world, config, rows=5).epoch(0):
            requests, levels = context.requests, labels.candidate_level
            assert requests.candidates is not None
            assert levels is not None
            for row, place in requests.is_real.nonzero().tolist():
                cut = int(requests.cut[row, place])
                items = requests.candidates.item[row, place].flatten().tolist()
                became = zip(items, levels[row, place].flatten().tolist(), strict=True)
                moment = [int(value[row, place]) for value in requests.situation.values()]
                history = context.history.item[row, :cut].tolist()
                when = int(requests.timestamp[row, place])
                lists.append((when, history, moment, sorted(became)))
        found.append(sorted(lists))
    assert found[0] == found[1]
    assert len(found[0]) > 100
