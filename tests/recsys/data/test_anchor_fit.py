"""Tables of anchors against values worked by hand, and against loops over the events."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from tiny_logs import TinyLogs, tiny_config
from tiny_world import User, write_dataset

from recsys.data.anchor_fit import bin_edges, fit_anchors, top_of_rows
from recsys.data.anchors import AnchorsConfig, AnchorTables
from recsys.data.cooccurrence import cooccurrence
from recsys.data.folder import sha256
from recsys.data.prepare import prepare
from recsys.schema import ColumnSpec, Feature, SplitSpec

QUERY = {
    "event_features": (Feature(name="query", kind="categorical", rows=4),),
    "columns": ColumnSpec(event_features=("query",), situation=("query",)),
}
FUNNEL = {"behaviors": ("click", "cart", "order", "like"), "funnel": ("click", "cart", "order")}
LEAVE_ONE_OUT = SplitSpec(kind="leave_one_out")


def fit(
    folder: Path,
    users: list[User],
    *,
    starts: list[int] | None = None,
    num_trained: int = 6,
    buckets: tuple[int, ...] = (),
    coarse: list[int] | None = None,
    world: dict[str, Any] | None = None,
    **config: Any,
) -> AnchorTables:
    data = write_dataset(
        folder, users, num_trained=num_trained, buckets=buckets, coarse=coarse, **(world or {})
    )
    fit_anchors(data.path, data.manifest, AnchorsConfig(**config), coarse="category", starts=starts)
    return AnchorTables.open(data.path)


def person(*events: tuple[int, int], **more: Any) -> User:
    """Events as (time, item)."""
    time, item = zip(*events, strict=True)
    return User(item=item, timestamp=time, train_end=len(events), **more)


def lists(table: np.ndarray) -> list[list[int]]:
    """Every list without its padding."""
    return [[i for i in row if i] for row in table.reshape(-1, table.shape[-1]).tolist()]


def random_users(seed: int = 0, number: int = 20, num_items: int = 10) -> list[User]:
    rng = np.random.default_rng(seed)
    users = []
    for _ in range(number):
        n = int(rng.integers(2, 9))
        time = np.sort(rng.integers(0, 100, n)).tolist()
        users.append(User(item=rng.integers(2, 2 + num_items, n), timestamp=time, train_end=n - 1))
    return users


# --- bins -----------------------------------------------------------------------------------------


def test_bins_hold_about_equally_many_events() -> None:
    times = np.random.default_rng(0).integers(0, 10_000, 4000) ** 2
    edges = bin_edges([times[:1000], times[1000:]], 8)
    assert edges[0] == times.min()
    assert edges[-1] == times.max() + 1
    assert np.histogram(times, edges)[0].tolist() == pytest.approx([500] * 8, abs=3)


def test_events_of_one_second_share_a_bin() -> None:
    assert bin_edges([np.array([5, 5, 5, 8, 8])], 4) == (5, 8, 9)
    assert bin_edges([np.array([5, 5])], 4) == (5, 6)


def test_given_starts_are_kept_and_closed_by_the_last_event() -> None:
    assert bin_edges([np.array([1, 99])], 4, [0, 50]) == (0, 50, 100)


def test_an_event_exactly_on_an_edge_is_read_by_the_next_row_and_not_by_its_own(
    tmp_path: Path,
) -> None:
    users = [person((0, 2), (9, 3), (10, 4), (20, 5))]
    table = fit(tmp_path, users, starts=[0, 10, 20], names=("trending",), decay=0.5)
    assert [set(row) for row in lists(table.arrays["trending"])] == [
        set(),
        {2, 3},
        {2, 3, 4},
        {2, 3, 4, 5},
    ]


# --- tables worked by hand ------------------------------------------------------------------------


def test_trending_counts_fade_from_bin_to_bin(tmp_path: Path) -> None:
    # Bin 0: item 2 three times, item 3 once. Bin 1: item 3 once, item 4 twice.
    # Before bin 2 that is 2: 1.5, 3: 0.5 + 1 = 1.5 … so item 3 once more: 2.5; 4: 2.
    users = [
        person((0, 2), (1, 2), (2, 2), (3, 3), (10, 3), (11, 4), (12, 4), (13, 3)),
    ]
    table = fit(tmp_path, users, starts=[0, 10, 20], names=("trending",), decay=0.5, length=3)
    assert lists(table.arrays["trending"]) == [[], [2, 3], [3, 4, 2], [3, 4, 2]]


@pytest.mark.parametrize(("decay", "expected"), [(0.0, [3]), (1.0, [2, 3])])
def test_without_decay_all_time_counts_and_with_full_decay_the_last_bin_alone(
    tmp_path: Path, decay: float, expected: list[int]
) -> None:
    users = [person((0, 2), (1, 2), (10, 3))]
    table = fit(tmp_path, users, starts=[0, 10], names=("trending",), decay=decay)
    assert lists(table.arrays["trending"])[2] == expected


def test_a_category_lists_its_own_items_and_an_unknown_one_lists_none(tmp_path: Path) -> None:
    users = [person((0, 2), (1, 4), (2, 4), (3, 3), (4, 5), (9, 2))]
    table = fit(
        tmp_path, users, starts=[0, 9], names=("category",), coarse=[2, 3, 2, 1], num_trained=4
    )
    assert lists(table.arrays["category"][1]) == [[], [], [4, 2], [3], []]


def test_neighbours_are_the_cosine_of_the_bins_before(tmp_path: Path) -> None:
    # Before 10 two users touched 2, one of them 3 as well; the pair (2, 4) comes later.
    users = [person((0, 2), (1, 3)), person((2, 2), (10, 4), (11, 2))]
    table = fit(tmp_path, users, starts=[0, 10], names=("neighbours",), length=2)
    assert lists(table.arrays["neighbours"][0]) == [[]] * 8
    assert lists(table.arrays["neighbours"][1])[2:5] == [[3], [2], []]
    weights = table.arrays["neighbours_weight"]
    assert weights.dtype == np.float16
    assert weights[1, 2].tolist() == pytest.approx([1 / np.sqrt(2), 0], rel=1e-3)
    assert lists(table.arrays["neighbours"][2])[4] == [2]


def test_a_query_lists_what_was_taken_for_it_by_how_far_it_went(tmp_path: Path) -> None:
    # Query 2: item 2 clicked twice (2), item 3 ordered (3), item 4 liked (outside the funnel).
    users = [
        person(
            (0, 2), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (20, 2),
            behavior=[3, 3, 5, 6, 3, 3, 3], event={"query": [2, 2, 2, 2, 3, 1, 3]},
        )
    ]  # fmt: skip
    table = fit(tmp_path, users, starts=[0, 10], names=("query",), world=QUERY | FUNNEL)
    assert lists(table.arrays["query"][1]) == [[], [], [3, 2], [5]]


def test_unknown_items_are_in_no_table(tmp_path: Path) -> None:
    users = [person((0, 1), (1, 2), (2, 1), (3, 1)), person((0, 1), (1, 2))]
    names = ("trending", "category", "neighbours")
    table = fit(tmp_path, users, num_trained=2, names=names, num_bins=2)
    for name in names:
        assert not (table.arrays[name] == 1).any()
    assert lists(table.arrays["neighbours"][-1])[1] == []


def test_top_of_rows_breaks_ties_by_the_given_order() -> None:
    scores = sp.csr_matrix(np.array([[0, 2, 1, 2], [0, 0, 0, 1]]))
    ids, best = top_of_rows(scores, 2, np.array([0, 3, 2, 1]))
    assert ids.tolist() == [[3, 1], [3, 0]]
    assert best.tolist() == [[2, 2], [1, 0]]


# --- tables against loops -------------------------------------------------------------------------


def before(users: list[User], end: int) -> list[tuple[int, int, int]]:
    """(user, time, item) of every event earlier than ``end``."""
    return [
        (number, t, int(i))
        for number, user in enumerate(users)
        for t, i in zip(user.timestamp or (), user.item, strict=True)
        if t < end
    ]


def test_trending_equals_a_loop_over_the_events_before_each_bin(tmp_path: Path) -> None:
    users, starts = random_users(), [0, 20, 50, 70]
    table = fit(tmp_path, users, starts=starts, num_trained=10, names=("trending",), decay=0.25)
    for row, end in enumerate([*starts, 100]):
        score = np.zeros(12)
        for _, t, item in before(users, end):
            age = sum(s <= end and s > t for s in starts[:row])
            score[item] += 0.25**age
        found = lists(table.arrays["trending"])[row]
        assert len(found) == np.count_nonzero(score)
        assert score[found].tolist() == sorted(score[found], reverse=True)


@pytest.mark.parametrize("graph", ["cosine", "swing"])
def test_neighbours_equal_the_graph_of_the_events_before_each_bin(
    tmp_path: Path, graph: Any
) -> None:
    users, starts = random_users(), [0, 30, 60]
    table = fit(
        tmp_path, users, starts=starts, num_trained=10, names=("neighbours",), graph=graph,
        length=12,
    )  # fmt: skip
    for row, end in enumerate([*starts, 100]):
        events = np.array(before(users, end), int).reshape(-1, 3)
        window = 5 if graph == "cosine" else None
        dense = cooccurrence(
            events[:, 0], events[:, 2], num_items=12, kind=graph, window=window
        ).toarray()
        found = table.arrays["neighbours"][row]
        weight = table.arrays["neighbours_weight"][row].astype(float)
        for item in range(12):
            assert (np.diff(weight[item]) <= 0).all()
            kept = found[item] > 0
            assert set(found[item][kept]) == set(np.flatnonzero(dense[item]))
            assert weight[item][kept] == pytest.approx(dense[item][found[item][kept]], rel=1e-3)


def test_tables_do_not_depend_on_how_users_are_spread_over_buckets(tmp_path: Path) -> None:
    names = ("trending", "category", "neighbours")
    one, two = (
        fit(tmp_path / str(len(b)), random_users(), num_trained=10, buckets=b, names=names)
        for b in ((), (7, 13))
    )
    for name, array in one.arrays.items():
        assert np.array_equal(array, two.arrays[name])


def test_equal_scores_do_not_tell_which_item_becomes_popular(tmp_path: Path) -> None:
    """Ids are ordered by events of the whole training part, so ids must not break ties."""
    users = [person((0, item)) for item in range(2, 42)]
    table = fit(tmp_path, users, num_trained=40, names=("trending",), length=40)
    order = np.array(lists(table.arrays["trending"])[-1])
    assert sorted(order) == list(range(2, 42))
    assert abs(np.corrcoef(order, np.arange(40))[0, 1]) < 0.4
    pairs = [person((0, 50), (1, item)) for item in range(2, 42)]
    table = fit(tmp_path / "pairs", pairs, num_trained=60, names=("neighbours",), length=5)
    assert max(lists(table.arrays["neighbours"][-1])[50]) > 6


# --- which events are read ------------------------------------------------------------------------


def test_the_first_bin_knows_nothing_and_the_last_row_everything(tmp_path: Path) -> None:
    table = fit(tmp_path, random_users(), num_trained=10, names=("trending",), num_bins=3)
    found = lists(table.arrays["trending"])
    assert found[0] == []
    assert set(found[-1]) == {int(i) for user in random_users() for i in user.item}


def test_held_out_events_of_leave_one_out_are_in_no_table(tmp_path: Path) -> None:
    users = [person((0, 2), (1, 3), (2, 4)), person((5, 2), (6, 5), (9, 3))]
    users = [replace(user, train_end=1, valid_end=2) for user in users]
    world = {"split": LEAVE_ONE_OUT}
    table = fit(tmp_path, users, names=("trending",), num_bins=2, world=world)
    assert lists(table.arrays["trending"])[-1] == [2]
    assert table.info.edges == (0, 5, 6)


def test_a_fold_is_fitted_on_the_users_of_the_other_folds(tmp_path: Path) -> None:
    world = {"has_time": False, "split": LEAVE_ONE_OUT}
    names = ("trending", "neighbours")
    users = [User(item=[2 + n, 3 + n, 2], train_end=2) for n in range(4)]
    options: dict[str, Any] = {"world": world, "names": names, "num_bins": 3, "length": 6}
    table = fit(tmp_path / "all", users, **options)
    assert table.info.folds == 3
    assert table.info.edges == ()
    for fold in range(4):
        # Users of the fold have nothing; what remains, a row fitted on everybody tells.
        empty = [replace(u, train_end=0) if fold == n % 3 else u for n, u in enumerate(users)]
        others = fit(tmp_path / str(fold), empty, **options)
        for name in table.arrays:
            assert np.array_equal(table.arrays[name][fold], others.arrays[name][-1])


def test_the_folds_of_a_user_never_see_him_in_any_bucket(tmp_path: Path) -> None:
    world = {"has_time": False, "split": LEAVE_ONE_OUT}
    users = [User(item=[2, 3, 4], train_end=3) for _ in range(6)]
    for number in range(6):
        mine = [replace(u, item=[7, 6, 5]) if n == number else u for n, u in enumerate(users)]
        table = fit(
            tmp_path / str(number), mine, buckets=(2, 4), world=world, names=("neighbours",),
            num_bins=2,
        )  # fmt: skip
        row = table.info.row_of(np.array([number if number < 2 else number - 2]), np.zeros((1, 1)))
        assert not table.arrays["neighbours"][row[0, 0], 5:8].any()
        assert table.arrays["neighbours"][-1, 5:8].any()


def test_neighbours_are_counted_on_whole_users_only(tmp_path: Path) -> None:
    users = [
        User(item=[2 + 2 * n, 3 + 2 * n], timestamp=[n, 60 + n], train_end=2) for n in range(9)
    ]
    table = fit(tmp_path, users, num_trained=18, names=("neighbours",), num_bins=2, graph_events=9)
    found = table.arrays["neighbours"][-1, 2:, 0].reshape(9, 2)
    whole = (found > 0).all(axis=1)
    assert 0 < whole.sum() < 9
    assert not found[~whole].any()


# --- the job --------------------------------------------------------------------------------------

CHANGES: dict[str, Any] = {
    "names": ("trending",),
    "num_bins": 3,
    "length": 2,
    "decay": 1.0,
    "graph": "swing",
    "graph_events": 30,
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_of_the_config_changes_the_tables(tmp_path: Path, name: str) -> None:
    assert set(CHANGES) == {field.name for field in fields(AnchorsConfig)}
    data = write_dataset(tmp_path, random_users(number=30), num_trained=10)
    base = AnchorsConfig(names=("trending", "neighbours"), num_bins=4, length=8)
    found = []
    for config in (base, base, replace(base, **{name: CHANGES[name]})):
        hashes = fit_anchors(data.path, data.manifest, config, coarse="category")
        found.append({k: v for k, v in hashes.items() if k != "anchors/anchors.json"})
        (data.path / "anchors").rename(data.path / f"old{len(found)}")
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_prepare_fits_the_tables_and_hashes_them(tiny_logs: TinyLogs, tmp_path: Path) -> None:
    config = tiny_config(
        tiny_logs,
        tmp_path / "out",
        anchors=AnchorsConfig(names=("trending", "category", "neighbours"), num_bins=4),
    )
    manifest = prepare(config)
    tables = AnchorTables.open(tmp_path / "out")
    for name in (*tables.arrays, "anchors"):
        path = f"anchors/{name}.{'json' if name == 'anchors' else 'npy'}"
        assert manifest.hashes[path] == sha256(tmp_path / "out" / path)
    assert len(tables.info.edges) == 5
    assert tables.arrays["trending"][1:].any(axis=1).all()


def test_prepare_fits_no_tables_unless_asked(prepared_tiny: Path) -> None:
    assert not (prepared_tiny / "anchors").exists()


def test_queries_without_a_query_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'query' need.*event_features \('device',\).*situation"):
        fit(
            tmp_path, [person((0, 2))], names=("query",),
            world={"columns": ColumnSpec(event_features=("device",))},
        )  # fmt: skip


@pytest.mark.parametrize(
    ("coarse", "feature", "allowed"),
    [
        ("auto", None, False),
        ("auto", Feature(name="brand", kind="categorical", rows=3), False),
        ("auto", Feature(name="category", kind="categorical", rows=3), True),
        ("auto", Feature(name="title", kind="text"), True),
        ("cooccurrence", Feature(name="category", kind="categorical", rows=3), False),
        ("none", None, False),
        ("text", Feature(name="title", kind="text"), True),
    ],
)
def test_clusters_of_cooccurrence_are_no_categories_because_they_know_what_follows(
    tmp_path: Path, coarse: Any, feature: Feature | None, allowed: bool
) -> None:
    data = write_dataset(tmp_path, random_users(), num_trained=10)
    manifest = replace(data.manifest, item_features=(feature,) if feature else ())
    config = AnchorsConfig(names=("category",))
    if allowed:
        assert fit_anchors(data.path, manifest, config, coarse=coarse)
        return
    with pytest.raises(ValueError, match=rf"'category' need.*not coarse codes by '{coarse}'"):
        fit_anchors(data.path, manifest, config, coarse=coarse)
    assert fit_anchors(data.path, manifest, replace(config, names=("trending",)), coarse=coarse)
