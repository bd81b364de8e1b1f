import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_logs import START, TinyLogs, tiny_config

from recsys.data.dataset import PreparedDataset
from recsys.data.prepare import PrepareConfig, prepare
from recsys.privacy.pseudonymise import Pseudonymiser
from recsys.schema import ColumnSpec, Manifest, SplitSpec

BY_TIME = SplitSpec(validation_time=100, test_time=200)
ONE_OUT = SplitSpec(kind="leave_one_out")


def log(path: Path, rows: list[tuple[Any, ...]], *names: str) -> str:
    """Write events (user, item, timestamp, …) and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ("user_id", "item_id", "timestamp", *names)
    pq.write_table(pa.table(dict(zip(columns, zip(*rows, strict=True), strict=True))), path)
    return str(path)


def config(tmp_path: Path, events: str, **changes: Any) -> PrepareConfig:
    values = {"events": (events,), "out": tmp_path / "out", "split": BY_TIME, "coarse": "none"}
    return PrepareConfig(**(values | changes))


def arrow(path: Path) -> pa.Table:
    with pa.ipc.open_file(path) as source:
        return source.read_all()


def histories(folder: Path) -> dict[str, dict[str, Any]]:
    """Every row of every bucket, by user."""
    rows = [r for p in sorted(folder.glob("histories/*")) for r in arrow(p).to_pylist()]
    return {r["user_id"]: r for r in rows}


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def external(folder: Path) -> list[str]:
    names: list[str] = arrow(folder / "items.arrow")["item_id"].to_pylist()
    return names


# --- small worlds worked by hand -----------------------------------------------------------------


def test_a_small_log_by_hand(tmp_path: Path) -> None:
    events = log(
        tmp_path / "e.parquet",
        [("b", 7, 150), ("a", 9, 10), ("a", 7, 5), ("b", 9, 20), ("a", 8, 120), ("a", 5, 250),
         ("c", 7, 260)],
    )  # fmt: skip
    manifest = prepare(config(tmp_path, events))
    assert external(tmp_path / "out") == ["", "", "9", "7"]  # two events, then one
    found = histories(tmp_path / "out")
    assert found["a"]["item"] == [3, 2, 1, 1]  # 8 and 5 have no training event
    assert found["a"]["timestamp"] == [5, 10, 120, 250]
    assert (found["a"]["train_end"], found["a"]["valid_end"]) == (2, 3)
    assert found["b"]["item"] == [2, 3]
    assert (found["b"]["train_end"], found["b"]["valid_end"]) == (1, 2)
    assert (found["c"]["train_end"], found["c"]["valid_end"]) == (0, 0)
    assert manifest.behaviors == ("interaction",)
    assert found["a"]["behavior"] == [3, 3, 3, 3]
    assert (manifest.num_items, manifest.num_trained_items, manifest.num_users) == (4, 2, 3)
    wanted = {"events.train": 3, "events.validation": 2, "events.test": 2, "events.unknown_item": 2,
              "items.unknown": 2, "users.without_training": 1, "files.timestamp_s": 1}  # fmt: skip
    assert wanted.items() <= manifest.counts.items()


def test_equal_times_keep_the_order_of_the_rows_across_files(tmp_path: Path) -> None:
    log(tmp_path / "log" / "b.parquet", [("u", f"b{i}", 50) for i in range(30)])
    log(tmp_path / "log" / "a.parquet", [("u", f"a{i}", 50) for i in range(30)] + [("u", "x", 40)])
    prepare(config(tmp_path, str(tmp_path / "log")))
    names = external(tmp_path / "out")
    found = [names[i] for i in histories(tmp_path / "out")["u"]["item"]]
    assert found == ["x", *(f"a{i}" for i in range(30)), *(f"b{i}" for i in range(30))]


def test_events_of_one_second_are_ordered_by_their_microseconds(tmp_path: Path) -> None:
    second = 1_600_000_000
    rows = [("u", "late", second * 1000 + 9), ("u", "early", second * 1000 + 2)]
    split = SplitSpec(validation_time=second + 5, test_time=second + 6)
    prepare(config(tmp_path, log(tmp_path / "e.parquet", rows), split=split))
    row = histories(tmp_path / "out")["u"]
    assert [external(tmp_path / "out")[i] for i in row["item"]] == ["early", "late"]
    assert row["timestamp"] == [second, second]


def test_an_order_column_stands_for_missing_times(tmp_path: Path) -> None:
    rows = [("u", "c", None, 3), ("u", "a", None, 1), ("u", "b", None, 2)]
    path = log(tmp_path / "e.parquet", rows, "step")
    columns = ColumnSpec(timestamp=None, order="step")
    manifest = prepare(config(tmp_path, path, columns=columns, split=ONE_OUT))
    row = histories(tmp_path / "out")["u"]
    assert not manifest.has_time
    assert row["timestamp"] == [1, 2, 3]
    assert (row["train_end"], row["valid_end"]) == (1, 2)
    assert external(tmp_path / "out")[2:] == ["a"]


def test_the_order_column_wins_over_times_in_leave_one_out(tmp_path: Path) -> None:
    path = log(tmp_path / "e.parquet", [("u", "b", 10, 2), ("u", "a", 20, 1)], "step")
    prepare(config(tmp_path, path, columns=ColumnSpec(order="step"), split=ONE_OUT))
    assert histories(tmp_path / "out")["u"]["timestamp"] == [20, 10]


def test_behaviors_are_the_funnel_then_the_others_of_training_by_name(tmp_path: Path) -> None:
    names = ["zoom", "order", "click", "cancel", "late"]
    rows = [("u", "i", 10 + n, b) for n, b in enumerate(names[:4])] + [("u", "i", 150, "late")]
    path = log(tmp_path / "e.parquet", rows, "behavior")
    manifest = prepare(config(tmp_path, path, funnel=("click", "order")))
    assert manifest.behaviors == ("click", "order", "cancel", "zoom")
    assert histories(tmp_path / "out")["u"]["behavior"] == [6, 4, 3, 5, 1]  # "late": unknown
    assert manifest.counts["behavior.late"] == 1


def test_leave_one_out_holds_back_the_target_behavior_or_stronger(tmp_path: Path) -> None:
    behaviors = ["click", "cart", "click", "order", "click"]
    rows = [("u", f"i{n}", n, b) for n, b in enumerate(behaviors)]
    path = log(tmp_path / "e.parquet", rows, "behavior")
    prepare(config(tmp_path, path, split=ONE_OUT, funnel=("click", "cart", "order"),
                   target_behavior="cart"))  # fmt: skip
    row = histories(tmp_path / "out")["u"]
    assert (row["train_end"], row["valid_end"]) == (1, 3)


def test_items_of_two_domains_never_meet(tmp_path: Path) -> None:
    rows = [("u", 1, 10, "food"), ("u", 1, 20, "books"), ("u", 1, 30, "food"), ("u", 1, 150, "new")]
    path = log(tmp_path / "e.parquet", rows, "shop")
    items = tmp_path / "i.parquet"
    shops = {"item_id": [1, 1], "shop": ["food", "books"], "kind": ["x", "y"]}
    pq.write_table(pa.table(shops), items)
    columns = ColumnSpec(domain="shop", item_features=("kind",))
    manifest = prepare(config(tmp_path, path, columns=columns, items=(str(items),)))
    assert manifest.domains == ("books", "food")
    assert external(tmp_path / "out")[2:] == ["food\u241f1", "books\u241f1"]
    row = histories(tmp_path / "out")["u"]
    assert row["item"] == [2, 3, 2, 1]
    assert row["domain"] == [3, 2, 3, 1]
    assert arrow(tmp_path / "out" / "items.arrow")["kind"].to_pylist() == [1, 1, 2, 3]


def test_items_of_the_table_come_after_the_trained_ones(tmp_path: Path) -> None:
    path = log(tmp_path / "e.parquet", [("u", "b", 1), ("u", "later", 150), ("u", "never", 160)])
    items = tmp_path / "i.parquet"
    pq.write_table(pa.table({"item_id": ["later", "b", "aside", None, "b"]}), items)
    manifest = prepare(config(tmp_path, path, items=(str(items),)))
    assert external(tmp_path / "out")[2:] == ["b", "aside", "later"]
    assert histories(tmp_path / "out")["u"]["item"] == [2, 4, 1]
    assert arrow(tmp_path / "out" / "items.arrow")["train_count"].to_pylist() == [0, 0, 1, 0, 0]
    assert manifest.num_trained_items == 1
    wanted = {"items.untrained": 2, "items_table.rows": 3, "items_table.null_id": 1,
              "items_table.duplicate_id": 1}  # fmt: skip
    assert wanted.items() <= manifest.counts.items()


def test_features_are_fitted_on_what_training_sees(tmp_path: Path) -> None:
    rows = [
        ("u", "a", 1, "phone", 1.0), ("u", "b", 2, "phone", 3.0), ("v", "a", 3, "desk", None),
        ("v", "b", 150, "watch", 900.0), ("w", "a", 160, None, 2.0),
    ]  # fmt: skip
    path = log(tmp_path / "e.parquet", rows, "device", "price")
    items, users = tmp_path / "i.parquet", tmp_path / "u.parquet"
    pq.write_table(pa.table({
        "item_id": ["a", "b", "aside"], "brand": ["x", None, "unseen"], "size": [2.0, 4.0, 9.0],
        "tags": [["p", "q"], ["q", "q"], ["q", "unseen", None]], "shelf": [10, 20, 10],
    }), items)  # fmt: skip
    people = {"user_id": ["v", "w", "u"], "land": ["it", "fr", "it"], "age": [30, 99, 50]}
    pq.write_table(pa.table(people), users)
    columns = ColumnSpec(
        event_features=("device", "price"), item_features=("brand", "size", "tags", "shelf"),
        user_features=("land", "age"),
    )  # fmt: skip
    manifest = prepare(config(tmp_path, path, columns=columns, items=(str(items),),
                              users=(str(users),), categorical_features=("shelf",)))  # fmt: skip
    dataset = PreparedDataset(tmp_path / "out")
    assert dataset.vocabularies == {
        "event.device": ["phone", "desk"], "item.brand": ["x"], "item.tags": ["q", "p"],
        "item.shelf": ["10", "20"], "user.land": ["it"],
    }  # fmt: skip
    table = arrow(tmp_path / "out" / "items.arrow")
    assert external(tmp_path / "out")[2:] == ["a", "b", "aside"]
    assert table["brand"].to_pylist() == [1, 1, 2, 1, 1]
    assert table["tags"].to_pylist() == [[], [], [2, 3], [2], [1, 2]]
    assert table["shelf"].to_pylist() == [1, 1, 2, 3, 2]
    assert table["size"].to_pylist() == [0, 0, -1, 1, 6]
    kinds = [f.kind for f in manifest.item_features]
    assert kinds == ["categorical", "numeric", "multi_hot", "categorical"]
    found = histories(tmp_path / "out")
    assert found["u"]["event.device"] == [2, 2]
    assert found["v"]["event.device"] == [3, 1]
    assert found["w"]["event.device"] == [1]
    assert found["u"]["event.price"] == [-1, 1]
    assert found["v"]["event.price"] == [0, 898]
    assert [found[u]["user.land"] for u in "uvw"] == [2, 2, 1]
    assert [found[u]["user.age"] for u in "uv"] == [1, -1]


def test_values_below_the_minimum_count_are_unknown_everywhere(tmp_path: Path) -> None:
    rows = [("u", "a", 1, "phone"), ("v", "b", 2, "phone"), ("w", "c", 3, "desk")]
    path = log(tmp_path / "e.parquet", rows, "device")
    items, users = tmp_path / "i.parquet", tmp_path / "u.parquet"
    pq.write_table(pa.table({
        "item_id": ["a", "b", "c"], "brand": ["x", "y", "x"], "tags": [["p"], ["p", "q"], []],
    }), items)  # fmt: skip
    pq.write_table(pa.table({"user_id": ["u", "v", "w"], "land": ["it", "it", "fr"]}), users)
    columns = ColumnSpec(event_features=("device",), item_features=("brand", "tags"),
                         user_features=("land",))  # fmt: skip
    job = config(tmp_path, path, columns=columns, items=(str(items),), users=(str(users),))
    prepare(replace(job, min_count=2))
    assert PreparedDataset(tmp_path / "out").vocabularies == {
        "event.device": ["phone"], "item.brand": ["x"], "item.tags": ["p"], "user.land": ["it"],
    }  # fmt: skip
    assert arrow(tmp_path / "out" / "items.arrow")["tags"].to_pylist()[2:] == [[2], [1, 2], []]
    assert external(tmp_path / "out")[2:] == ["a", "b", "c"]
    assert histories(tmp_path / "out")["w"]["event.device"] == [1]


def test_texts_of_events_have_a_vector_a_code(tmp_path: Path) -> None:
    rows = [("u", "a", 1, "red shoes"), ("u", "b", 2, "garden hose"), ("v", "a", 3, "shoes red"),
            ("v", "a", 4, None), ("v", "a", 150, "red hat")]  # fmt: skip
    path = log(tmp_path / "e.parquet", rows, "query")
    columns = ColumnSpec(event_features=("query",), situation=("query",))
    job = config(tmp_path, path, columns=columns, text_features=("query",), text_width=3)
    manifest = prepare(job)
    (query,), (text,) = manifest.event_features, manifest.event_texts
    assert (query.name, query.kind, query.rows) == ("query", "categorical", 5)
    assert (text.name, text.kind, text.rows, text.width) == ("query", "text", 5, 3)
    assert "events.query.npy" in manifest.hashes
    dataset = PreparedDataset(tmp_path / "out")
    vectors = dataset.catalogue.event_texts["query"]
    assert vectors.shape == (5, 3)
    assert vectors[:2].abs().sum() == 0
    place = {v: i + 2 for i, v in enumerate(dataset.vocabularies["event.query"])}
    same = vectors[place["red shoes"]] @ vectors[place["shoes red"]]
    other = vectors[place["red shoes"]] @ vectors[place["garden hose"]]
    assert float(same) == pytest.approx(1)
    assert abs(float(other)) < 1e-5
    assert histories(tmp_path / "out")["v"]["event.query"] == [place["shoes red"], 1, 1]
    prepare(replace(job, out=tmp_path / "again"))
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


# --- nothing from the future, nothing lost -------------------------------------------------------


def test_a_planted_future_changes_nothing_that_training_sees(
    tiny_logs: TinyLogs, tmp_path: Path
) -> None:
    split = SplitSpec(validation_time=START + 20 * 86400, test_time=START + 25 * 86400)
    plain = prepare(tiny_config(tiny_logs, tmp_path / "plain", split=split))
    events = pq.read_table(tiny_logs.events)
    late = {"user_id": "u0", "item_id": "planted", "timestamp": START + 29 * 86400,
            "behavior": "planted", "device": "planted", "price": 1e9}  # fmt: skip
    more = pa.concat_tables([events, pa.Table.from_pylist([late] * 50, schema=events.schema)])
    pq.write_table(more, tiny_logs.events)
    future = prepare(tiny_config(tiny_logs, tmp_path / "future", split=split))
    for name in ("items.arrow", "items.text.npy", "vocabularies.json"):
        assert future.hashes[name] == plain.hashes[name], name
    for name in ("behaviors", "event_features", "item_features", "user_features", "num_items"):
        assert getattr(future, name) == getattr(plain, name), name
    before, after = histories(tmp_path / "plain"), histories(tmp_path / "future")
    for user, row in before.items():
        cut = row["valid_end"]
        for name, value in row.items():
            same = value[:cut] if isinstance(value, list) else value
            now = after[user][name]
            assert (now[:cut] if isinstance(now, list) else now) == same, (user, name)
    assert future.counts["events.unknown_item"] == 50


def test_rejects_and_used_rows_are_all_rows(tmp_path: Path) -> None:
    rows: list[tuple[Any, ...]] = [(f"u{n % 5}", f"i{n % 7}", n) for n in range(300)]
    rows[7], rows[9], rows[11] = (None, "i", 3), ("u1", None, 3), ("u1", "i1", -3)
    path = log(tmp_path / "e.parquet", rows)
    manifest = prepare(config(tmp_path, path, max_reject_fraction=0.01))
    assert manifest.rejects == {"negative_timestamp": 1, "null_item_id": 1, "null_user_id": 1}
    assert manifest.rows_in == 300 == manifest.rows_out + sum(manifest.rejects.values())
    kept = sum(len(row["item"]) for row in histories(tmp_path / "out").values())
    assert kept == manifest.rows_out == 297
    rejects = pq.read_table(tmp_path / "out" / "rejects" / "events.parquet").to_pylist()
    assert [(r["file"], r["row"]) for r in rejects] == [("e.parquet", n) for n in (7, 9, 11)]


def test_too_many_rejects_stop_the_job_and_are_listed(tmp_path: Path) -> None:
    rows: list[tuple[Any, ...]] = [("u", "i", 5)] * 9 + [(None, "i", 5)]
    job = config(tmp_path, log(tmp_path / "e.parquet", rows))
    with pytest.raises(
        ValueError, match=r"1 of 10 rows .*\(null_user_id 1\).*\(0.01\).*out.rejects"
    ):
        prepare(job)
    assert not job.out.exists()
    assert pq.read_table(tmp_path / "out.rejects" / "events.parquet").num_rows == 1
    assert prepare(replace(job, max_reject_fraction=0.2)).rows_out == 9
    assert not (tmp_path / "out.rejects").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.parquet", "out"]


def test_a_log_of_rejects_only_stops_whatever_the_limit(tmp_path: Path) -> None:
    path = log(tmp_path / "e.parquet", [("", "i", 5)] * 3)
    with pytest.raises(ValueError, match=r"3 of 3 rows cannot be used \(empty_user_id 3\)"):
        prepare(config(tmp_path, path, max_reject_fraction=1.0))


# --- the same bytes, whatever the way ------------------------------------------------------------


def test_the_same_input_gives_the_same_bytes(tiny_logs: TinyLogs, tmp_path: Path) -> None:
    prepare(tiny_config(tiny_logs, tmp_path / "one"))
    prepare(tiny_config(tiny_logs, tmp_path / "elsewhere" / "two", threads=2))
    assert contents(tmp_path / "one") == contents(tmp_path / "elsewhere" / "two")


def test_no_path_of_the_machine_is_in_the_output(tiny_logs: TinyLogs, tmp_path: Path) -> None:
    prepare(tiny_config(tiny_logs, tmp_path / "one"))
    for name, data in contents(tmp_path / "one").items():
        assert str(tmp_path).encode() not in data, name


@pytest.mark.parametrize("split", [SplitSpec(), ONE_OUT])
def test_many_buckets_hold_the_rows_of_one(
    tiny_logs: TinyLogs, tmp_path: Path, split: SplitSpec
) -> None:
    changes: dict[str, Any] = {"split": split, "coarse": "text"}
    one = prepare(tiny_config(tiny_logs, tmp_path / "one", num_buckets=1, **changes))
    changes |= {"num_buckets": 13, "threads": 2}
    many = prepare(tiny_config(tiny_logs, tmp_path / "many", **changes))
    assert histories(tmp_path / "one") == histories(tmp_path / "many")
    same = {"num_buckets": 0, "hashes": {}}
    assert replace(one, **same) == replace(many, **same)  # type: ignore[arg-type]
    for name in ("items.arrow", "items.text.npy", "vocabularies.json"):
        assert one.hashes[name] == many.hashes[name]


def test_the_split_of_a_log_over_files_does_not_matter(tmp_path: Path) -> None:
    rows = [(n % 6, n % 11, n * 3 % 250) for n in range(120)]
    log(tmp_path / "one" / "a.parquet", rows)
    for part in range(4):
        log(tmp_path / "four" / f"{part}.parquet", rows[part * 30 : part * 30 + 30])
    for name in ("one", "four"):
        prepare(config(tmp_path, str(tmp_path / name), out=tmp_path / f"out-{name}"))
    assert histories(tmp_path / "out-one") == histories(tmp_path / "out-four")


def test_integer_and_text_ids_give_the_same_users_in_the_same_buckets(tmp_path: Path) -> None:
    rows = [(n % 9, n % 4, n) for n in range(99)]
    texts = [(str(u), str(i), t) for u, i, t in rows]
    one = config(tmp_path, log(tmp_path / "n.parquet", rows), out=tmp_path / "n", num_buckets=3)
    two = config(tmp_path, log(tmp_path / "t.parquet", texts), out=tmp_path / "t", num_buckets=3)
    assert prepare(one).hashes == prepare(two).hashes


EVENT = st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 30))


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(EVENT, min_size=1, max_size=40), buckets=st.integers(1, 4))
def test_what_was_logged_is_what_the_histories_say(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, int]], buckets: int
) -> None:
    tmp_path = tmp_path_factory.mktemp("round")
    path = log(tmp_path / "e.parquet", rows)
    split = SplitSpec(validation_time=1000, test_time=2000)
    prepare(config(tmp_path, path, split=split, num_buckets=buckets, threads=1))
    names = external(tmp_path / "out")
    for user in {u for u, _, _ in rows}:
        expected = sorted((r for r in rows if r[0] == user), key=lambda r: r[2])
        row = histories(tmp_path / "out")[str(user)]
        assert [names[i] for i in row["item"]] == [str(i) for _, i, _ in expected]
        assert row["timestamp"] == [t for _, _, t in expected]
        assert row["train_end"] == len(expected)


# --- privacy, drift, the folder ------------------------------------------------------------------


def test_pseudonyms_replace_every_trace_of_the_user_ids(tmp_path: Path) -> None:
    rows: list[tuple[Any, ...]] = [(f"secret-{n % 7}", f"i{n % 3}", n) for n in range(300)]
    rows[5] = ("secret-5", None, 5)
    path = log(tmp_path / "e.parquet", rows)
    users = tmp_path / "u.parquet"
    pq.write_table(pa.table({"user_id": ["secret-1"], "land": ["it"]}), users, compression=None)
    hide = Pseudonymiser(b"0123456789abcdef")
    job = config(tmp_path, path, columns=ColumnSpec(user_features=("land",)), users=(str(users),),
                 num_buckets=2)  # fmt: skip
    manifest = prepare(job, pseudonymise=hide)
    found = histories(job.out)
    assert set(found) == set(hide([f"secret-{n}" for n in range(7)]))
    assert found[hide(["secret-1"])[0]]["user.land"] == 2
    assert manifest.rejects == {"null_item_id": 1}
    rejects = pq.read_table(job.out / "rejects" / "events.parquet").to_pylist()
    assert rejects[0]["user_id"] == hide(["secret-5"])[0]
    for name, data in contents(job.out).items():
        assert b"secret" not in data, name
        assert b"0123456789abcdef" not in data, name


def test_integer_ids_are_hidden_like_their_texts(tmp_path: Path) -> None:
    hide = Pseudonymiser(b"0123456789abcdef")
    job = config(tmp_path, log(tmp_path / "e.parquet", [(7, 1, 5), (8, 1, 6)]))
    prepare(job, pseudonymise=hide)
    assert set(histories(job.out)) == set(hide(["7", "8"]))


def test_drift_is_counted_against_the_data_set_before(tmp_path: Path) -> None:
    first = config(tmp_path, log(tmp_path / "a.parquet", [("u", "a", 1), ("v", "b", 2)]),
                   out=tmp_path / "first", num_buckets=2)  # fmt: skip
    prepare(first)
    rows = [("v", "b", 2), ("w", "c", 3), ("x", "c", 4), ("x", "b", 5)]
    second = config(tmp_path, log(tmp_path / "b.parquet", rows), previous=tmp_path / "first")
    counts = prepare(second).counts
    assert {k.removeprefix("drift."): v for k, v in counts.items() if k.startswith("drift.")} == {
        "events_previous": 2, "events_change": 2, "users_previous": 2, "users_new": 2,
        "users_gone": 1, "items_previous": 2, "items_new": 1, "items_gone": 1,
        "unknown_per_million": 500_000,
    }  # fmt: skip


def test_only_a_prepared_data_set_is_overwritten_and_only_when_asked(tmp_path: Path) -> None:
    job = config(tmp_path, log(tmp_path / "e.parquet", [("u", "i", 5)]))
    prepare(job)
    with pytest.raises(ValueError, match="already holds a prepared data set; pass --overwrite"):
        prepare(job)
    prepare(replace(job, overwrite=True))
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_text("meow")
    with pytest.raises(ValueError, match="photos exists and is not a prepared data set"):
        prepare(replace(job, out=other, overwrite=True))


def test_a_job_that_fails_leaves_the_earlier_data_set_alone(tmp_path: Path) -> None:
    job = config(tmp_path, log(tmp_path / "e.parquet", [("u", "i", 5)]))
    prepare(job)
    before = contents(job.out)
    log(tmp_path / "e.parquet", [("u", "i", 500)])
    with pytest.raises(ValueError, match="training part is empty"):
        prepare(replace(job, overwrite=True))
    assert contents(job.out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.parquet", "out"]


def test_the_manifest_hashes_every_other_file(prepared_tiny: Path) -> None:
    import hashlib

    manifest = PreparedDataset(prepared_tiny).manifest
    found = {n: hashlib.sha256(d).hexdigest() for n, d in contents(prepared_tiny).items()}
    del found["manifest.json"]
    assert manifest.hashes == found


# --- coarse codes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coarse", "most"), [("category", 7), ("text", 6), ("cooccurrence", 6), ("none", 2)]
)
def test_coarse_codes_cover_every_item(
    tiny_logs: TinyLogs, tmp_path: Path, coarse: Any, most: int
) -> None:
    manifest = prepare(tiny_config(tiny_logs, tmp_path / "out", coarse=coarse, num_coarse=4))
    codes = PreparedDataset(tmp_path / "out").catalogue.coarse
    assert codes[:2].tolist() == [0, 0]
    assert manifest.num_coarse <= most
    assert 1 <= int(codes[2:].min())
    assert int(codes.max()) < manifest.num_coarse


def test_auto_prefers_a_declared_category_then_text_then_cooccurrence(
    tiny_logs: TinyLogs, tmp_path: Path
) -> None:
    def coarse(name: str, **changes: Any) -> list[int]:
        prepare(tiny_config(tiny_logs, tmp_path / name, **changes))
        found: list[int] = PreparedDataset(tmp_path / name).catalogue.coarse.tolist()
        return found

    text = {"columns": ColumnSpec(item_features=("text",))}
    plain = {"columns": ColumnSpec(), "text_features": ()}
    assert coarse("a") == coarse("b", coarse="category")
    assert coarse("c", **text) == coarse("d", coarse="text", **text)
    assert coarse("e", **plain) == coarse("f", coarse="cooccurrence", **plain)


def test_a_coarse_code_that_cannot_be_made_says_what_it_needs(
    tiny_logs: TinyLogs, tmp_path: Path
) -> None:
    plain = {"columns": ColumnSpec(), "text_features": ()}
    with pytest.raises(ValueError, match="coarse 'category' needs an item feature named"):
        prepare(tiny_config(tiny_logs, tmp_path / "a", coarse="category", **plain))
    with pytest.raises(ValueError, match="coarse 'text' needs text_features"):
        prepare(tiny_config(tiny_logs, tmp_path / "b", coarse="text", **plain))


def test_cooccurrence_is_counted_on_whole_users_up_to_a_limit(prepared_tiny: Path) -> None:
    from recsys.data.items import training_sample

    buckets = PreparedDataset(prepared_tiny).manifest.num_buckets
    user, item = training_sample(prepared_tiny, buckets, 100)
    everyone, everything = training_sample(prepared_tiny, buckets, 10**9)
    assert 60 < len(user) <= 100
    assert item.tolist() == everything[: len(item)].tolist()
    assert everyone[len(user)] != user[-1]


# --- declarations that cannot be meant -----------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"events": ()}, "events must name at least one"),
        ({"max_reject_fraction": 2.0}, r"max_reject_fraction \(2.0\)"),
        ({"num_buckets": -1}, r"num_buckets \(-1\)"),
        ({"threads": 0}, r"threads \(0\)"),
        ({"columns": ColumnSpec(item_features=("x",))}, r"item_features \['x'\] need a table"),
        ({"categorical_features": ("x",)}, "'x' is listed as categorical or text"),
        ({"funnel": ("a", "b"), "target_behavior": "c"}, r"target_behavior \('c'\)"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PrepareConfig(**({"events": ("e.parquet",), "out": tmp_path} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"funnel": ("click", "buy")}, r"behavior 'buy' is not in the log; it has \['cart'"),
        ({"columns": ColumnSpec(behavior=None), "text_features": ()},
         r"\['click', 'cart', 'order'\] need a behavior column"),
        ({"columns": ColumnSpec(event_features=("nope",)), "text_features": ()},
         "no column 'nope'"),
        ({"columns": ColumnSpec(item_features=("nope",)), "text_features": ()},
         "items.parquet has 0 columns named 'nope'"),
        ({"columns": ColumnSpec(event_features=("price",)), "text_features": ("price",)},
         "text feature 'price' must be a string column, not double"),
        ({"columns": ColumnSpec(item_features=("weight",)), "text_features": ("weight",)},
         "text feature 'weight' must be a string column, not double"),
    ],
)  # fmt: skip
def test_a_declaration_the_log_cannot_meet_is_named(
    tiny_logs: TinyLogs, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(tiny_config(tiny_logs, tmp_path / "out", **changes))


def test_leave_one_out_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = log(tmp_path / "e.parquet", [("u", "a", 1), ("u", "b", 2)])
    with caplog.at_level(logging.WARNING):
        manifest: Manifest = prepare(config(tmp_path, path, split=ONE_OUT))
    assert "Leave-one-out leaks" in caplog.text
    assert manifest.validation_time is None


def test_progress_is_told_stage_by_stage(tiny_logs: TinyLogs, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    prepare(tiny_config(tiny_logs, tmp_path / "out"), progress=lambda *what: seen.append(what))
    assert seen[-1] == ("write", 2, 2)
    assert ("read", 600, 600) in seen
    assert ("sort", 2, 2) in seen
    assert np.all(np.diff([d for s, d, _ in seen if s == "read"]) > 0)
