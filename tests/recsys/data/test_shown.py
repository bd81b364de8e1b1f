"""Lists that were shown, as they end in a prepared data set: order, moment, part, feedback."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.catalogue import tables
from recsys.data.dataset import Impressions, PreparedDataset
from recsys.data.prepare import PrepareConfig, prepare
from recsys.data.synthetic import SyntheticConfig, synthetic_world
from recsys.privacy.pseudonymise import Pseudonymiser
from recsys.schema import ColumnSpec, ImpressionSpec, Manifest, SplitSpec

BY_TIME = SplitSpec(validation_time=100, test_time=200)
EVENTS = ("user_id", "item_id", "timestamp", "behavior")
SHOWN = ("request_id", "user_id", "item_id", "timestamp", "click", "order")


def write(path: Path, names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), path)
    return str(path)


def config(tmp_path: Path, events: str, shown: str, **changes: Any) -> PrepareConfig:
    values = {
        "events": (events,), "impressions": (shown,), "out": tmp_path / "out", "split": BY_TIME,
        "coarse": "none", "funnel": ("click", "order"),
    }  # fmt: skip
    return PrepareConfig(**(values | changes))


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def lists(folder: Path) -> list[dict[str, Any]]:
    """Every list with its user's and items' external names, by bucket and row."""
    dataset = PreparedDataset(folder)
    names, found = dataset.catalogue.item_ids.to_pylist(), []
    for bucket, shown in zip(dataset.buckets, dataset.impressions, strict=True):
        users = bucket.user_ids.to_pylist()
        for i in range(len(shown)):
            found.append({
                "user": users[int(shown.user[i])], "time": int(shown.timestamp[i]),
                "place": int(shown.place[i]), "part": int(shown.part[i]),
                "items": [names[v] or "?" for v in shown.item.row(i).tolist()],
                "label": shown.label.row(i).tolist(),
                "position": shown.position.row(i).tolist(),
                **{n: v[i].item() for n, v in shown.situation.items()},
            })  # fmt: skip
    return found


def history(folder: Path, user: str) -> list[tuple[str, str, int]]:
    """Item, behavior and time of a user's events."""
    dataset = PreparedDataset(folder)
    manifest, names = dataset.manifest, dataset.catalogue.item_ids.to_pylist()
    for bucket in dataset.buckets:
        users = bucket.user_ids.to_pylist()
        if user in users:
            row = users.index(user)
            columns = (
                bucket.events[n].row(row).tolist() for n in ("item", "behavior", "timestamp")
            )
            return [
                (names[i], manifest.behaviors[b - 3] if b >= 3 else "?", t)
                for i, b, t in zip(*columns, strict=True)
            ]
    return []


CLICKS = [
    ("a", "x", 10, "click"), ("a", "y", 20, "click"), ("a", "y", 20, "order"),
    ("a", "z", 30, "click"), ("b", "x", 15, "click"), ("b", "y", 120, "click"),
    ("b", "z", 220, "click"),
]  # fmt: skip


def test_lists_by_hand(tmp_path: Path) -> None:
    events = write(tmp_path / "e.parquet", EVENTS, CLICKS)
    shown = write(tmp_path / "s.parquet", (*SHOWN, "position"), [
        (1, "a", "y", 20, 1, 1, 2), (2, "b", "new", 120, 0, 0, None), (1, "a", "x", 21, 0, 0, 0),
        (2, "b", "y", 120, 1, 0, 5), (3, "b", "z", 220, 0, 0, 0), (4, "a", "z", 5, 0, 0, 0),
        (1, "b", "x", 90, 1, 0, 1),
    ])  # fmt: skip
    manifest = prepare(config(tmp_path, events, shown))
    assert manifest.num_impressions == 5
    assert lists(tmp_path / "out") == [
        {"user": "a", "time": 5, "place": 0, "part": 0, "items": ["z"], "label": [0],
         "position": [1]},
        {"user": "a", "time": 20, "place": 1, "part": 0, "items": ["x", "y"], "label": [0, 2],
         "position": [1, 3]},
        {"user": "b", "time": 90, "place": 1, "part": 0, "items": ["x"], "label": [1],
         "position": [2]},
        {"user": "b", "time": 120, "place": 1, "part": 1, "items": ["y", "?"], "label": [1, 0],
         "position": [6, 0]},
        {"user": "b", "time": 220, "place": 2, "part": 2, "items": ["z"], "label": [0],
         "position": [1]},
    ]  # fmt: skip
    wanted = {"impressions.rows_in": 7, "impressions.rows_out": 7, "impressions.items": 7,
              "items.unknown": 0}  # fmt: skip
    assert wanted.items() <= manifest.counts.items()


def test_both_shapes_of_a_log_give_the_same_bytes(tmp_path: Path) -> None:
    events = write(tmp_path / "e.parquet", EVENTS, CLICKS)
    rows = write(tmp_path / "rows.parquet", SHOWN, [
        (1, "a", "y", 20, 1, 0), (1, "a", "x", 20, 0, 0), (2, "b", "z", 220, 1, 0),
    ])  # fmt: skip
    whole = write(tmp_path / "lists.parquet", ("user_id", "timestamp", "item_ids", "clicked_item"),
                  [("a", 20, ["y", "x"], "y"), ("b", 220, ["z"], "z")])  # fmt: skip
    prepare(config(tmp_path, events, rows, out=tmp_path / "one"))
    prepare(config(tmp_path, events, whole, out=tmp_path / "two"))
    one, two = lists(tmp_path / "one"), lists(tmp_path / "two")
    assert [x["position"] for x in one] == [[0, 0], [0]]
    assert [x["position"] for x in two] == [[1, 2], [1]]
    unplaced = [[{**x, "position": None} for x in found] for found in (one, two)]
    assert unplaced[0] == unplaced[1]


def test_positions_that_count_from_one_stay(tmp_path: Path) -> None:
    events = write(tmp_path / "e.parquet", EVENTS, CLICKS)
    shown = write(tmp_path / "s.parquet", (*SHOWN, "position"),
                  [(1, "a", "x", 20, 1, 0, 2), (1, "a", "y", 20, 0, 0, 1)])  # fmt: skip
    prepare(config(tmp_path, events, shown))
    (found,) = lists(tmp_path / "out")
    assert (found["items"], found["position"]) == (["y", "x"], [1, 2])


def test_labels_beyond_the_retrievals_target_are_kept_for_the_ranking(tmp_path: Path) -> None:
    events = write(tmp_path / "e.parquet", EVENTS, CLICKS)
    shown = write(tmp_path / "s.parquet", SHOWN, [(1, "a", "x", 20, 0, 1)])
    prepare(config(tmp_path, events, shown, target_behavior="click"))
    assert [x["label"] for x in lists(tmp_path / "out")] == [[2]]


def test_rows_of_users_without_history_are_rejects_and_everything_adds_up(tmp_path: Path) -> None:
    events = write(tmp_path / "e.parquet", EVENTS, CLICKS)
    good = [(n, "ab"[n % 2], "x", 10 + n, 0, 0) for n in range(200)]
    rows = [*good, (900, "stranger", "x", 5, 1, 0), (900, "stranger", "y", 5, 0, 0),
            (901, None, "x", 5, 0, 0)]  # fmt: skip
    shown = write(tmp_path / "s.parquet", SHOWN, rows)
    hide = Pseudonymiser(b"sixteen bytes at least")
    manifest = prepare(config(tmp_path, events, shown, num_buckets=3), pseudonymise=hide)
    counts = {n.removeprefix("impressions."): c for n, c in manifest.counts.items()}
    assert counts["rejected.user_without_history"] == 2
    assert counts["rejected.null_user_id"] == 1
    rejected = sum(c for n, c in counts.items() if n.startswith("rejected."))
    assert counts["rows_in"] == 203 == counts["rows_out"] + rejected
    assert counts["items"] == manifest.num_impressions == 200
    kept = [r for p in sorted((tmp_path / "out" / "rejects").glob("*"))
            for r in pq.read_table(p).to_pylist()]  # fmt: skip
    assert [(r["file"], r["row"], r["reason"]) for r in kept] == [
        ("s.parquet", 200, "user_without_history"), ("s.parquet", 201, "user_without_history"),
        ("s.parquet", 202, "null_user_id"),
    ]  # fmt: skip
    assert {r["user_id"] for r in kept} == {*hide(["stranger"]), None}
    assert not any(b"stranger" in data for data in contents(tmp_path / "out").values())
    assert {x["user"] for x in lists(tmp_path / "out")} == set(hide(["a", "b"]))
    hashed = set(contents(tmp_path / "out")) - {"manifest.json"}
    assert set(manifest.hashes) == hashed


def test_too_many_bad_rows_of_impressions_stop_the_job(tmp_path: Path) -> None:
    events = write(tmp_path / "e.parquet", EVENTS, CLICKS)
    shown = write(tmp_path / "s.parquet", SHOWN,
                  [(1, "a", "x", 20, 0, 1), (2, None, "x", 20, 0, 1)])  # fmt: skip
    with pytest.raises(ValueError, match=r"1 of 2 rows of impressions cannot .*null_user_id 1"):
        prepare(config(tmp_path, events, shown))
    assert pq.read_table(tmp_path / "out.rejects" / "impressions.parquet").num_rows == 1


# --- nothing from the future ---------------------------------------------------------------------

EVENT_ROWS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(0, 9)),
    min_size=1, max_size=15,
)  # fmt: skip
LIST_ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from("abc"), st.sampled_from("xyzw"),
              st.integers(0, 10), st.booleans()),
    min_size=1, max_size=15,
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(events=EVENT_ROWS, rows=LIST_ROWS, buckets=st.integers(1, 3))
def test_place_and_items_equal_a_loop_over_the_log(
    tmp_path_factory: pytest.TempPathFactory,
    events: list[tuple[str, str, int]],
    rows: list[tuple[int, str, str, int, bool]],
    buckets: int,
) -> None:
    tmp_path = tmp_path_factory.mktemp("logs")
    log = write(tmp_path / "e.parquet", EVENTS, [(*e, "click") for e in events])
    shown = write(tmp_path / "s.parquet", SHOWN[:5], rows)
    prepare(config(tmp_path, log, shown, num_buckets=buckets, funnel=("click",)))
    expected: dict[tuple[str, int], list[Any]] = {}
    users, items = {e[0] for e in events}, {e[1] for e in events}
    for request, user, item, time, click in rows:
        if user in users:
            one = expected.setdefault((user, request), [time, [], []])
            one[0] = min(one[0], time)
            one[1].append(item if item in items else "?")
            one[2].append(int(click))
    found = lists(tmp_path / "out") if expected else []
    found_lists = sorted((x["user"], x["time"], x["place"], x["items"], x["label"]) for x in found)
    assert found_lists == sorted(
        (user, time, sum(e[0] == user and e[2] < time for e in events), shown_items, labels)
        for (user, _), (time, shown_items, labels) in expected.items()
    )


@pytest.mark.parametrize("feedback", [False, True])
def test_a_planted_future_changes_no_earlier_list(tmp_path: Path, feedback: bool) -> None:
    rows = [(1, "a", "x", 20, 0, 0), (1, "a", "y", 20, 1, 0), (2, "b", "x", 15, 1, 0)]
    changes = {"split": SplitSpec(validation_time=35, test_time=200), "negative_feedback": feedback}

    def prepared(name: str, events: list[Any], shown: list[Any]) -> list[dict[str, Any]]:
        log = write(tmp_path / "e.parquet", EVENTS, events)
        job = config(tmp_path, log, write(tmp_path / "s.parquet", SHOWN, shown),
                     out=tmp_path / name, **changes)  # fmt: skip
        prepare(job)
        return lists(tmp_path / name)

    plain = prepared("plain", CLICKS[:5], rows)
    later = [("a", "x", 20, "click"), ("a", "x", 40, "click"), ("b", "z", 50, "order")]
    asked = [(7, "a", "y", 40, 0, 0), (7, "a", "x", 40, 1, 0)]
    future = prepared("future", [*CLICKS[:5], *later], [*rows, *asked])
    assert [x for x in future if x["time"] < 40] == plain
    assert [x["place"] for x in future if x["time"] == 40] == [6 if feedback else 5]


def test_in_leave_one_out_a_list_is_held_back_with_what_follows_it(tmp_path: Path) -> None:
    rows = [("a", f"i{t}", t, "click") for t in (10, 20, 30, 40)] + [("b", "i10", 10, "click")]
    events = write(tmp_path / "e.parquet", EVENTS, rows)
    times = (5, 20, 21, 30, 31, 40, 99)
    asked = [(t, "a", "i10", t, 0, 0) for t in times] + [(1, "b", "i10", 99, 1, 0)]
    shown = write(tmp_path / "s.parquet", SHOWN, asked)
    prepare(config(tmp_path, events, shown, split=SplitSpec(kind="leave_one_out"),
                   funnel=("click", )))  # fmt: skip
    found = {(x["user"], x["time"]): x["part"] for x in lists(tmp_path / "out")}
    assert [found["a", t] for t in times] == [0, 0, 1, 1, 2, 2, 2]
    assert found["b", 99] == 0


# --- the situation -------------------------------------------------------------------------------


def test_the_situation_is_encoded_with_the_vocabularies_of_the_events(tmp_path: Path) -> None:
    events = write(tmp_path / "e.parquet", (*EVENTS, "query", "mood", "step"), [
        ("a", "x", 10, "click", "tea", 1.0, "s"), ("a", "y", 20, "click", "tea", 3.0, "s"),
        ("b", "x", 30, "click", "pot", 1.0, "s"), ("b", "x", 150, "order", "late", 9.0, "s"),
    ])  # fmt: skip
    shown = write(tmp_path / "s.parquet", (*SHOWN, "query", "mood"), [
        (1, "a", "x", 20, 1, 0, "pot", 3.0), (2, "a", "x", 25, 1, 0, "late", None),
        (3, "b", "x", 40, 1, 0, None, 1.0), (3, "b", "y", 40, 0, 0, "tea", 2.0),
    ])  # fmt: skip
    columns = ColumnSpec(event_features=("query", "mood", "step"), situation=("query", "mood"))
    manifest = prepare(config(tmp_path, events, shown, columns=columns))
    mean, scale = manifest.event_features[1].mean, manifest.event_features[1].scale
    found = lists(tmp_path / "out")
    assert [x["query"] for x in found] == [3, 1, 1]
    assert [x["mood"] for x in found] == pytest.approx([(3 - mean) / scale, 0, (1 - mean) / scale])


def test_a_situation_that_is_no_event_feature_is_refused() -> None:
    with pytest.raises(ValueError, match=r"situation \('device'\) must be one of event_features"):
        ColumnSpec(event_features=("query",), situation=("query", "device"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": ColumnSpec(timestamp=None, order="n")}, "impressions need events ordered by"),
        ({"columns": ColumnSpec(order="n")}, "impressions need events ordered by time"),
        ({"impressions": (), "negative_feedback": True}, "negative_feedback needs lists"),
        ({"min_count": 0}, r"min_count \(0\) must be at least 1"),
    ],
)
def test_impressions_that_cannot_be_meant_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PrepareConfig(**({"events": ("e",), "impressions": ("i",), "out": Path("o")} | changes))


# --- negative feedback ---------------------------------------------------------------------------


def test_skips_by_hand(tmp_path: Path) -> None:
    events = write(tmp_path / "e.parquet", EVENTS, CLICKS)
    shown = write(tmp_path / "s.parquet", SHOWN, [
        (1, "a", "new", 10, 0, 0), (1, "a", "x", 10, 1, 0), (1, "a", "z", 10, 0, 0),
        (2, "a", "x", 12, 0, 0), (3, "stranger", "x", 12, 0, 0),
    ])  # fmt: skip
    manifest = prepare(config(tmp_path, events, shown, negative_feedback=True))
    assert manifest.behaviors == ("click", "order", "skip")
    assert manifest.negative_feedback
    assert history(tmp_path / "out", "a") == [
        ("x", "click", 10), ("", "skip", 10), ("z", "skip", 10), ("x", "skip", 12),
        ("y", "click", 20), ("y", "order", 20), ("z", "click", 30),
    ]  # fmt: skip
    assert [x["place"] for x in lists(tmp_path / "out")] == [0, 3]
    assert manifest.counts["behavior.skip"] == 3
    assert history(tmp_path / "out", "stranger") == []


def test_skips_wait_for_what_was_taken_from_their_list(tmp_path: Path) -> None:
    events = write(tmp_path / "e.parquet", EVENTS, CLICKS)
    shown = write(tmp_path / "s.parquet", SHOWN, [
        (1, "a", "z", 8, 0, 0), (1, "a", "y", 8, 1, 1), (1, "a", "x", 8, 1, 0),
        (2, "b", "y", 9, 0, 0), (2, "b", "z", 9, 1, 0), (3, "b", "x", 16, 1, 0),
        (3, "b", "y", 16, 0, 0),
    ])  # fmt: skip
    prepare(config(tmp_path, events, shown, negative_feedback=True))
    assert history(tmp_path / "out", "a") == [
        ("x", "click", 10), ("y", "click", 20), ("y", "order", 20), ("z", "skip", 20),
        ("z", "click", 30),
    ]  # fmt: skip
    assert history(tmp_path / "out", "b") == [
        ("x", "click", 15), ("y", "skip", 16), ("y", "click", 120), ("z", "click", 220),
        ("y", "skip", 220),
    ]  # fmt: skip


def test_a_log_without_behaviors_can_have_negative_feedback(tmp_path: Path) -> None:
    events = write(tmp_path / "e.parquet", EVENTS[:3], [("a", "x", 10), ("a", "y", 20)])
    shown = write(tmp_path / "s.parquet", ("user_id", "timestamp", "item_ids", "clicked_item"),
                  [("a", 10, ["x", "y"], "x")])  # fmt: skip
    manifest = prepare(config(tmp_path, events, shown, funnel=(), negative_feedback=True))
    assert manifest.behaviors == ("interaction", "skip")
    assert [b for _, b, _ in history(tmp_path / "out", "a")] == [
        "interaction", "skip", "interaction",
    ]  # fmt: skip
    assert [x["label"] for x in lists(tmp_path / "out")] == [[1, 0]]


def test_a_skip_of_the_log_itself_is_not_mixed_with_ours(tmp_path: Path) -> None:
    events = write(tmp_path / "e.parquet", EVENTS, [*CLICKS, ("a", "x", 30, "skip")])
    shown = write(tmp_path / "s.parquet", SHOWN, [(1, "a", "x", 20, 0, 1)])
    with pytest.raises(ValueError, match="would mix with the log's own behavior 'skip'"):
        prepare(config(tmp_path, events, shown, negative_feedback=True))
    assert "skip" in prepare(config(tmp_path, events, shown)).behaviors


def test_codes_of_targets_leave_negative_feedback_out() -> None:
    log = Manifest(behaviors=("click", "skip", "view"), funnel=("click",))
    assert log.codes_at_least(None) == (3, 4, 5)
    assert replace(log, negative_feedback=True).codes_at_least(None) == (3, 5)
    assert replace(log, negative_feedback=True).codes_at_least("skip") == (4,)


@pytest.mark.parametrize("kind", ["time", "leave_one_out"])
def test_negative_feedback_changes_no_count_vocabulary_or_target(tmp_path: Path, kind: Any) -> None:
    world = synthetic_world(
        SyntheticConfig(num_users=40, num_items=30, num_events=900, list_length=4, seed=3)
    )
    for name in ("events", "items", "users", "impressions"):
        pq.write_table(getattr(world, name), tmp_path / f"{name}.parquet")
    columns = ColumnSpec(event_features=("device", "query"), item_features=("brand", "price"),
                         user_features=("region",))  # fmt: skip
    job = PrepareConfig(
        events=(str(tmp_path / "events.parquet"),), items=(str(tmp_path / "items.parquet"),),
        users=(str(tmp_path / "users.parquet"),), columns=columns, split=SplitSpec(kind=kind),
        impressions=(str(tmp_path / "impressions.parquet"),), out=tmp_path / "plain",
        funnel=("click", "cart", "order"), coarse="cooccurrence", num_buckets=2,
    )  # fmt: skip
    plain = prepare(job)
    fed = prepare(replace(job, out=tmp_path / "fed", negative_feedback=True))
    for name in ("items.arrow", "vocabularies.json"):
        assert fed.hashes[name] == plain.hashes[name], name
    skips = fed.counts["behavior.skip"]
    assert skips > 100
    for name, count in plain.counts.items():
        assert fed.counts[name] == count, name
    one, two = PreparedDataset(tmp_path / "plain"), PreparedDataset(tmp_path / "fed")
    assert [
        (f.name, f.mean, f.rows) for f in plain.event_features
    ] == [(f.name, f.mean, f.rows) for f in fed.event_features]  # fmt: skip
    for ours, theirs in zip(one.training_events("item"), two.training_events("item"), strict=True):
        assert ours.tolist() == theirs.tolist()
    code = fed.behaviors.index("skip") + 3
    for left, right in zip(one.buckets, two.buckets, strict=True):
        kept = right.events["behavior"].values != code
        assert right.user_ids.equals(left.user_ids)
        assert right.events["item"].values[kept].tolist() == left.events["item"].values.tolist()
        for cut in ("train_end", "valid_end"):
            for row in range(left.num_users):
                before = right.events["behavior"].row(row)[: getattr(right, cut)[row]] != code
                held = getattr(right, cut)[row] < len(right.events["item"].row(row))
                if kind == "time" or held:
                    assert int(before.sum()) == int(getattr(left, cut)[row])
    assert skips + fed.rows_out == sum(len(b.events["item"].values) for b in two.buckets)


# --- the same bytes, whatever the way; real logs -------------------------------------------------


@pytest.mark.parametrize("feedback", [False, True])
def test_the_same_impressions_give_the_same_bytes_and_buckets_the_same_lists(
    tmp_path: Path, feedback: bool
) -> None:
    world = synthetic_world(SyntheticConfig(num_users=30, num_items=30, num_events=600, seed=1))
    pq.write_table(world.events, tmp_path / "e.parquet")
    pq.write_table(world.impressions, tmp_path / "s.parquet", row_group_size=64)
    job = config(tmp_path, str(tmp_path / "e.parquet"), str(tmp_path / "s.parquet"),
                 split=SplitSpec(), num_buckets=3, negative_feedback=feedback)  # fmt: skip
    prepare(replace(job, out=tmp_path / "one"))
    prepare(replace(job, out=tmp_path / "elsewhere" / "two", threads=1))
    assert contents(tmp_path / "one") == contents(tmp_path / "elsewhere" / "two")
    prepare(replace(job, out=tmp_path / "single", num_buckets=1))

    def key(row: dict[str, Any]) -> Any:
        return row["user"], row["time"], row["items"]

    assert sorted(lists(tmp_path / "one"), key=key) == sorted(lists(tmp_path / "single"), key=key)


def test_a_bucket_without_lists_is_an_empty_one(tmp_path: Path) -> None:
    events = write(tmp_path / "e.parquet", EVENTS, CLICKS)
    shown = write(tmp_path / "s.parquet", SHOWN, [(1, "a", "x", 20, 0, 1)])
    prepare(config(tmp_path, events, shown, num_buckets=9, negative_feedback=True))
    dataset = PreparedDataset(tmp_path / "out")
    assert sorted(len(shown) for shown in dataset.impressions) == [0] * 8 + [1]
    empty = next(shown for shown in dataset.impressions if not len(shown))
    assert isinstance(empty, Impressions)
    assert (len(empty.item.values), empty.item.offsets.tolist()) == (0, [0])


def test_without_impressions_there_are_none(tmp_path: Path) -> None:
    events = write(tmp_path / "e.parquet", EVENTS, CLICKS)
    manifest = prepare(replace(config(tmp_path, events, ""), impressions=()))
    assert manifest.num_impressions == 0
    assert PreparedDataset(tmp_path / "out").impressions == ()


def test_lists_of_trivago_are_all_there(tmp_path: Path) -> None:
    try:
        found = tables("trivago-rsc19-100k")
    except ValueError as error:
        pytest.skip(str(error))
    raw = pq.read_table(found["impressions"]).slice(0, 400)
    pq.write_table(raw, tmp_path / "s.parquet")
    job = config(
        tmp_path, str(found["events"]), str(tmp_path / "s.parquet"), funnel=("click",),
        target_behavior="click", split=SplitSpec(), num_buckets=2,
        impression_columns=ImpressionSpec(request_id="impression_id"),
    )  # fmt: skip
    manifest = prepare(job)
    assert manifest.num_impressions == 400
    items = raw["item_ids"].to_pylist()
    assert manifest.counts["impressions.items"] == sum(map(len, items))
    assert not any("rejected" in name for name in manifest.counts)
    logged = pq.read_table(found["events"], columns=["user_id", "timestamp"]).to_pydict()
    of_user: dict[str, list[int]] = {}
    for user, time in zip(logged["user_id"], logged["timestamp"], strict=True):
        of_user.setdefault(user, []).append(time)
    rows = zip(raw["user_id"].to_pylist(), raw["timestamp"].to_pylist(), items,
               raw["clicked_pos"].to_pylist(), strict=True)  # fmt: skip
    expected = [
        (u, t, int(np.less(of_user[u], t).sum()), [int(i == p) for i in range(len(shown))])
        for u, t, shown, p in rows
    ]
    assert sorted(expected) == sorted(
        (x["user"], x["time"], x["place"], x["label"]) for x in lists(tmp_path / "out")
    )
    assert all(
        x["position"] == list(range(1, len(x["items"]) + 1)) for x in lists(tmp_path / "out")
    )
