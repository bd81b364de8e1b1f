"""Anchors of requests: nothing of the future, values worked by hand, slow twins, edges."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_world import User, tiny_model, write_dataset
from torch import Tensor

from recsys.context.anchors import AnchorReader, best
from recsys.context.config import AnchorName, ContextConfig
from recsys.context.history import Window
from recsys.data.anchor_fit import fit_anchors
from recsys.data.anchors import AnchorsConfig
from recsys.data.dataset import PreparedDataset
from recsys.model.save import save_pretrained
from recsys.schema import ColumnSpec, Feature, SplitSpec

TABLES = ("trending", "category", "neighbours", "query")
GROUPS: tuple[AnchorName, ...] = ("own", *TABLES)
STARTS = [0, 100, 200, 300]
END = 400
NUM_ITEMS = 14
QUERIES = 5
WORLD: dict[str, Any] = {
    "behaviors": ("click", "cart", "order", "like"),
    "funnel": ("click", "cart", "order"),
    "event_features": (Feature(name="query", kind="categorical", rows=QUERIES),),
    "columns": ColumnSpec(event_features=("query",), situation=("query",)),
}


@dataclass(frozen=True)
class Request:
    """A moment of one user: events before ``place`` are there, the window begins at ``start``."""

    user: int
    start: int
    place: int
    time: int
    query: int = 0


def people(seed: int, number: int = 12, longest: int = 14) -> list[User]:
    rng = np.random.default_rng(seed)
    users = []
    for _ in range(number):
        n = int(rng.integers(5, longest))
        users.append(events(rng, n, np.sort(rng.integers(0, END, n))))
    return users


def events(rng: np.random.Generator, n: int, time: np.ndarray) -> User:
    return User(
        item=rng.integers(2, NUM_ITEMS + 2, n).tolist(),
        timestamp=time.tolist(),
        behavior=rng.choice([3, 4, 5, 6], n).tolist(),
        event={"query": rng.integers(1, QUERIES, n).tolist()},
        train_end=n,
    )


def columns(user: User) -> list[tuple[int, int, int, int]]:
    return list(
        zip(user.timestamp or (), user.item, user.behavior or (), user.event["query"], strict=True)
    )


def joined(user: User, rows: list[tuple[int, int, int, int]]) -> User:
    time, item, behavior, query = (list(column) for column in zip(*rows, strict=True))
    return replace(
        user, item=item, timestamp=time, behavior=behavior, event={"query": query},
        train_end=len(item),
    )  # fmt: skip


def prepared(
    folder: Path, users: list[User], *, world: dict[str, Any] = WORLD, **config: Any
) -> PreparedDataset:
    data = write_dataset(folder, users, num_trained=NUM_ITEMS, **world)
    names = TABLES if "event_features" in world else TABLES[:3]
    starts = STARTS if data.manifest.has_time else None
    options = {"names": names, "length": 6, "num_bins": 4, **config}
    fit_anchors(
        data.path, data.manifest, AnchorsConfig(**options), coarse="category", starts=starts
    )
    return data


def read(
    data: PreparedDataset,
    requests: list[Request],
    *groups: AnchorName,
    reader: AnchorReader | None = None,
    **config: Any,
) -> Tensor:
    """Anchors of requests, a row each, (requests, groups, length)."""
    reader = reader or AnchorReader.open(
        data.path, ContextConfig(**{"anchors": groups, "anchor_length": 4, **config})
    )
    bucket = data.buckets[0]
    rows = torch.tensor([r.user for r in requests])
    first = bucket.offsets[rows]
    start, place = (torch.tensor([getattr(r, n) for r in requests]) for n in ("start", "place"))
    found = reader.anchors(
        bucket,
        rows=rows,
        window=Window(first + start, place - start),
        place=(first + place)[:, None],
        timestamp=torch.tensor([[r.time] for r in requests]),
        is_real=torch.ones(len(requests), 1, dtype=torch.bool),
        query=torch.tensor([[r.query] for r in requests]),
    )
    return found.reshape(len(requests), len(groups) or 1, -1)


def asked(users: list[User], seed: int) -> list[Request]:
    """Requests at each user's events, windows of at most three events."""
    rng = np.random.default_rng(seed)
    found = []
    for number, user in enumerate(users):
        place = int(rng.integers(1, len(user.item)))
        time = (user.timestamp or ())[place]
        start = max(0, place - int(rng.integers(1, 4)))
        found.append(Request(number, start, place, time, int(rng.integers(2, QUERIES))))
    return found


def plain(found: Tensor) -> list[int]:
    return [i for i in found.flatten().tolist() if i]


# --- the future -----------------------------------------------------------------------------------


def plant(users: list[User], request: Request, seed: int) -> list[User]:
    """Another future: what others did since the bin began, and the user since his request."""
    rng = np.random.default_rng(seed)
    begin = max(s for s in STARTS if s <= request.time)
    changed = []
    for number, user in enumerate(users):
        since = request.place if number == request.user else None
        rows = [
            row
            for place, row in enumerate(columns(user))
            if (row[0] < begin if since is None else place < since)
        ]
        low = begin if since is None else request.time
        new = events(rng, 6, np.sort(rng.integers(low, END + 50, 6)))
        new = replace(new, timestamp=[low, *(new.timestamp or ())[1:]])  # one at the very moment
        changed.append(joined(user, rows + columns(new)))
    return [*changed, events(rng, 9, np.sort(rng.integers(begin, END, 9)))]


def plant_past(users: list[User], request: Request, seed: int) -> list[User]:
    """Another past: what is older than the bin, and all of the user before his request."""
    rng = np.random.default_rng(seed)
    begin = max(s for s in STARTS if s <= request.time)
    changed = []
    for number, user in enumerate(users):
        other = events(rng, len(user.item), np.array(user.timestamp))
        own = number == request.user
        rows = [
            new if (place < request.place if own else old[0] < begin) else old
            for place, (old, new) in enumerate(zip(columns(user), columns(other), strict=True))
        ]
        changed.append(joined(user, rows))
    return changed


def check_future(tmp_path: Path, group: AnchorName) -> None:
    """A planted future changes nothing; a planted past does, or the test would prove nothing."""
    seen = changes = 0
    for seed in range(3):
        users = people(seed)
        data = prepared(tmp_path / f"{seed}", users)
        requests = asked(users, seed)
        before = read(data, requests, group)
        for request, expected in list(zip(requests, before, strict=True))[:3]:
            name = f"{seed}-{request.user}"
            future = prepared(tmp_path / f"{name}f", plant(users, request, seed + 50))
            assert torch.equal(read(future, [request], group)[0], expected)
            past = prepared(tmp_path / f"{name}p", plant_past(users, request, seed + 90))
            seen += bool(expected.any())
            changes += not torch.equal(read(past, [request], group)[0], expected)
    assert seen > 3
    assert changes > 3


def test_a_planted_future_event_changes_no_own_anchor(tmp_path: Path) -> None:
    check_future(tmp_path, "own")


def test_a_planted_future_event_changes_no_trending_anchor(tmp_path: Path) -> None:
    check_future(tmp_path, "trending")


def test_a_planted_future_event_changes_no_category_anchor(tmp_path: Path) -> None:
    check_future(tmp_path, "category")


def test_a_planted_future_event_changes_no_neighbours_anchor(tmp_path: Path) -> None:
    check_future(tmp_path, "neighbours")


def test_a_planted_future_event_changes_no_query_anchor(tmp_path: Path) -> None:
    check_future(tmp_path, "query")


def test_a_planted_future_event_changes_no_anchor_of_a_swing_graph(tmp_path: Path) -> None:
    users = people(9)
    data = prepared(tmp_path / "now", users, graph="swing")
    requests = asked(users, 9)
    before = read(data, requests, "neighbours")
    assert before.any()
    for number, request in enumerate(requests[:3]):
        future = prepared(tmp_path / str(number), plant(users, request, 1), graph="swing")
        assert torch.equal(read(future, [request], "neighbours")[0], before[number])


def test_without_times_a_users_own_later_events_change_none_of_his_anchors(tmp_path: Path) -> None:
    world = {"has_time": False, "split": SplitSpec(kind="leave_one_out")}
    users = [replace(u, event={}, behavior=None) for u in people(3)]
    groups: tuple[AnchorName, ...] = ("own", "trending", "category", "neighbours")
    requests = [replace(r, time=r.place) for r in asked(users, 3)]
    before = read(prepared(tmp_path / "now", users, world=world), requests, *groups)
    assert all(before[:, number].any() for number in range(len(groups)))
    for number, request in enumerate(requests):
        item = list(users[request.user].item)
        changed = [*users]
        later = [2 + (i * 7 + 3) % NUM_ITEMS for i in item[request.place :]]
        changed[request.user] = replace(users[request.user], item=item[: request.place] + later)
        data = prepared(tmp_path / str(number), changed, world=world)
        assert torch.equal(read(data, [request], *groups)[0], before[number])


# --- values worked by hand ------------------------------------------------------------------------


def test_own_are_the_most_used_items_from_before_the_window_the_latest_first(
    tmp_path: Path,
) -> None:
    item = [2, 3, 3, 4, 5, 2, 6, 9, 9, 9]
    user = User(item=item, train_end=10, timestamp=list(range(10)))
    data = prepared(tmp_path, [user], world={})
    request = Request(0, start=7, place=9, time=9)
    # 2 and 3 twice, 2 last; then 6, 5, 4 once each, 6 last. Nothing of the window.
    assert plain(read(data, [request], "own")) == [2, 3, 6, 5]
    assert plain(read(data, [replace(request, start=0)], "own")) == []


def test_own_leaves_out_what_is_no_task(tmp_path: Path) -> None:
    user = joined(people(0)[0], [(0, 2, 6, 2), (1, 2, 6, 2), (2, 3, 5, 2), (3, 4, 3, 2)])
    assert plain(read(prepared(tmp_path, [user]), [Request(0, 3, 4, 9)], "own")) == [3]


def test_own_counts_a_bounded_number_of_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.context.anchors.OWN_EVENTS", 2)
    user = User(item=[2, 2, 2, 3, 4, 5], train_end=6, timestamp=list(range(6)))
    data = prepared(tmp_path, [user], world={})
    assert plain(read(data, [Request(0, 5, 6, 9)], "own")) == [4, 3]


def test_trending_is_the_row_of_the_moment(tmp_path: Path) -> None:
    user = User(item=[2, 3, 3, 4], train_end=4, timestamp=[0, 100, 150, 250])
    data = prepared(tmp_path, [user], world={})
    moments = [Request(0, 0, 1, time) for time in (99, 100, 199, 200, 300, 10**9)]
    found = [plain(one) for one in read(data, moments, "trending")]
    assert found == [[], [2], [2], [3, 2], [4, 3, 2], [4, 3, 2]]


def test_places_go_to_categories_by_the_weight_of_their_recent_events(tmp_path: Path) -> None:
    # Categories by id: 2, 5, 8 → 2; 3, 6, 9 → 3. Popular: 2 > 5 > 8 and 3 > 6 > 9.
    item = [2] * 3 + [5] * 2 + [8] + [3] * 3 + [6] * 2 + [9]
    crowd = User(item=item, train_end=12, timestamp=list(range(12)))
    user = User(item=[2, 9, 6], train_end=3, timestamp=[100, 101, 102])
    data = prepared(tmp_path, [crowd, user], world={})
    request = Request(1, 0, 3, 103)
    # The newest event (6) weighs 1, the one before (9) 2^-1/2, both of category 3; 2 weighs 2^-1:
    # 3: 1.71, 6: .85, 9: .57, 2: .5, 5: .25
    assert plain(read(data, [request], "category")) == [3, 6, 9, 2]
    assert plain(read(data, [request], "category", anchor_recent=1)) == [3, 6, 9]


def test_neighbours_of_recent_items_add_up(tmp_path: Path) -> None:
    users = [
        User(item=[2, 4], train_end=2, timestamp=[0, 1]),
        User(item=[3, 4], train_end=2, timestamp=[0, 1]),
        User(item=[3, 5], train_end=2, timestamp=[0, 1]),
        User(item=[2, 3], train_end=2, timestamp=[100, 101]),
    ]
    data = prepared(tmp_path, users, world={})
    # Of 3: 5 with 1/√2 and 4 with 1/2; of 2, one event older: 4 with 1/√2, which weighs 1/2.
    assert plain(read(data, [Request(3, 0, 2, 102)], "neighbours")) == [4, 5]
    assert plain(read(data, [Request(3, 0, 2, 102)], "neighbours", anchor_recent=1)) == [5, 4]


def test_query_anchors_belong_to_the_query_and_an_unknown_one_has_none(tmp_path: Path) -> None:
    user = joined(people(0)[0], [(0, 2, 3, 2), (1, 3, 5, 2), (2, 4, 3, 3), (3, 5, 3, 1)])
    data = prepared(tmp_path, [user])
    found = read(data, [Request(0, 0, 4, 150, query=q) for q in range(QUERIES)], "query")
    assert [plain(one) for one in found] == [[], [], [3, 2], [4], []]


def test_events_that_are_no_task_are_not_recent(tmp_path: Path) -> None:
    rows = [(0, 2, 3, 2), (1, 4, 3, 2), (100, 2, 3, 2), (101, 3, 6, 2)]
    data = prepared(tmp_path, [joined(people(0)[0], rows)])
    assert plain(read(data, [Request(0, 0, 4, 150)], "neighbours", anchor_recent=1)) == [4]


# --- slow twins -----------------------------------------------------------------------------------


def loop_best(item: list[int], score: list[float], length: int) -> list[int]:
    total: dict[int, float] = {}
    for i, s in zip(item, score, strict=True):
        if i:
            total[i] = total.get(i, 0.0) + s
    ranked = sorted((i for i in total if total[i] > 0), key=lambda i: -total[i])
    return ranked[:length] + [0] * (length - len(ranked[:length]))


def test_best_equals_a_loop() -> None:
    rng = np.random.default_rng(0)
    for width in (0, 1, 2, 7, 8, 64, 90):
        item = rng.integers(0, 12, (30, width))
        score = rng.integers(0, 4, (30, width)).astype(np.float32)
        expected = [loop_best(i, s, 10) for i, s in zip(item.tolist(), score.tolist(), strict=True)]
        assert best(item, score, 10).tolist() == expected


def test_category_and_neighbours_equal_loops_over_the_tables(tmp_path: Path) -> None:
    users = people(5)
    data, requests = prepared(tmp_path, users), asked(users, 5)
    found = read(data, requests, "category", "neighbours", anchor_recent=3)
    tables = {p.stem: np.load(p) for p in (data.path / "anchors").glob("*.npy")}
    coarse = data.catalogue.coarse
    for request, (of_category, of_items) in zip(requests, found, strict=True):
        row = max(n for n, s in enumerate([*STARTS, END + 1]) if s <= request.time)
        known = [e for e in columns(users[request.user])[: request.place] if e[2] != 6]
        lists: dict[str, list[Any]] = {"category": [], "neighbours": []}
        scores: dict[str, list[float]] = {"category": [], "neighbours": []}
        for ago, (_, item, _, _) in enumerate(known[::-1][:3]):
            fading = float(np.float32(0.5 ** (ago / 2)))
            for rank in range(4):
                lists["category"].append(tables["category"][row, coarse[item], rank])
                scores["category"].append(fading / (rank + 1))
                lists["neighbours"].append(tables["neighbours"][row, item, rank])
                scores["neighbours"].append(
                    fading * float(tables["neighbours_weight"][row, item, rank])
                )
        expected = loop_best(lists["category"], scores["category"], 4)
        assert of_category.tolist() == expected
        assert of_items.tolist() == loop_best(lists["neighbours"], scores["neighbours"], 4)


# --- the whole reader -----------------------------------------------------------------------------


def test_no_group_holds_an_item_twice_or_a_reserved_id_or_a_gap(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    users = people(2)
    users = [replace(u, item=[1 if rng.random() < 0.3 else i for i in u.item]) for u in users]
    found = read(prepared(tmp_path, users), asked(users, 2), *GROUPS)
    assert found.any(dim=0).any(dim=1).all()
    for group in found.flatten(0, 1).tolist():
        items = [i for i in group if i]
        assert len(set(items)) == len(items)
        assert group == items + [0] * (len(group) - len(items))
        assert 1 not in items


def test_an_anchor_may_be_in_the_history(tmp_path: Path) -> None:
    user = User(item=[2, 2], train_end=2, timestamp=[0, 100])
    data = prepared(tmp_path, [user], world={})
    assert plain(read(data, [Request(0, 0, 2, 150)], "trending")) == [2]


def test_groups_stand_in_the_order_of_the_config_each_as_wide_as_declared(tmp_path: Path) -> None:
    users = people(4)
    data, requests = prepared(tmp_path, users), asked(users, 4)
    together = read(data, requests, "query", "own", "neighbours", anchor_length=3)
    assert together.shape == (12, 3, 3)
    assert together.dtype == torch.int64
    for number, name in enumerate(("query", "own", "neighbours")):
        alone = read(data, requests, name, anchor_length=3)  # type: ignore[arg-type]
        assert torch.equal(together[:, number], alone[:, 0])


def test_many_requests_of_a_row_equal_the_same_one_by_one_and_padding_is_empty(
    tmp_path: Path,
) -> None:
    users = people(6)
    data = prepared(tmp_path, users)
    config = ContextConfig(anchors=GROUPS, anchor_length=4)
    reader, bucket = AnchorReader.open(data.path, config), data.buckets[0]
    rows = torch.tensor([4, 1, 7])
    first = bucket.offsets[rows]
    cut = torch.tensor([[1, 3, 4], [2, 4, 9**9], [4, -(9**9), 9**9]])
    is_real = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    place = first[:, None] + cut
    at = torch.where(is_real, place, 0)
    time = torch.where(is_real, bucket.events["timestamp"].values[at], -5)
    query = torch.where(is_real, bucket.events["event.query"].values[at].long(), 0)
    window = Window(first + 1, torch.tensor([3, 3, 3]))
    found = reader.anchors(
        bucket, rows=rows, window=window, place=place, timestamp=time, is_real=is_real, query=query
    )
    assert found.shape == (3, 3, 20)
    for b in range(3):
        for q in range(3):
            if not is_real[b, q]:
                assert not found[b, q].any()
                continue
            one = slice(b, b + 1), slice(q, q + 1)
            alone = reader.anchors(
                bucket,
                rows=rows[b : b + 1],
                window=Window(window.start[b : b + 1], window.lengths[b : b + 1]),
                place=place[one],
                timestamp=time[one],
                is_real=is_real[one],
                query=query[one],
            )
            assert torch.equal(alone[0, 0], found[b, q])


def test_a_user_without_events_gets_what_is_trending_and_nothing_else(tmp_path: Path) -> None:
    data = prepared(tmp_path, [*people(1), User(item=[], train_end=0, event={"query": []})])
    found = read(data, [Request(12, 0, 0, END)], *GROUPS)[0]
    assert [bool(group.any()) for group in found] == [False, True, False, False, False]


def test_a_bucket_without_events_is_read(tmp_path: Path) -> None:
    crowd = prepared(tmp_path / "crowd", people(1))
    data = prepared(tmp_path / "new", [User(item=[], train_end=0, event={"query": []})])
    config = ContextConfig(anchors=GROUPS, anchor_length=4)
    found = read(data, [Request(0, 0, 0, END)], reader=AnchorReader.open(crowd.path, config))
    assert found.any()


def test_a_model_folder_reads_the_newest_row_at_any_moment(tmp_path: Path) -> None:
    users = people(8)
    data = prepared(tmp_path / "data", users)
    save_pretrained(tiny_model(data), tmp_path / "model", data.path)
    requests = asked(users, 8)
    reader = AnchorReader.open(tmp_path / "model", ContextConfig(anchors=GROUPS, anchor_length=4))
    found = read(data, requests, reader=reader).reshape(12, 5, 4)
    newest = read(data, [replace(r, time=10**9) for r in requests], *GROUPS)
    assert torch.equal(found, newest)


def test_own_alone_needs_no_tables(tmp_path: Path) -> None:
    user = User(item=[2, 3], train_end=2)
    data = write_dataset(tmp_path, [user], num_trained=2)
    assert plain(read(data, [Request(0, 1, 2, 9)], "own", anchor_length=50)) == [2]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ContextConfig(anchors=("own", "query")), r"\['query'\].*\['trending', .*--anchors.names"),
        (
            ContextConfig(anchors=("trending",), anchor_length=9),
            r"anchor_length \(9\) must not be above the 6",
        ),
    ],
)
def test_groups_that_the_tables_cannot_fill_are_refused(
    tmp_path: Path, config: ContextConfig, message: str
) -> None:
    data = prepared(tmp_path, [User(item=[2], train_end=1)], world={})
    with pytest.raises(ValueError, match=message):
        AnchorReader.open(data.path, config)


CHANGES: dict[str, Callable[[ContextConfig], ContextConfig]] = {
    "anchors": lambda c: replace(c, anchors=("trending",)),
    "anchor_length": lambda c: replace(c, anchor_length=2),
    "anchor_recent": lambda c: replace(c, anchor_recent=1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_about_anchors_changes_them(tmp_path: Path, name: str) -> None:
    users = people(7)
    data, requests = prepared(tmp_path, users), asked(users, 7)
    base = ContextConfig(anchors=("category",), anchor_length=4)
    one, other = (
        read(data, requests, reader=AnchorReader.open(data.path, config))
        for config in (base, CHANGES[name](base))
    )
    assert not torch.equal(one, other)
