import math

import numpy as np
import pytest

from recsys.evaluation.table import UserTable, per_user


def make_table(**changes) -> UserTable:
    size = len(changes.get("user_index", [0, 1, 2]))
    values = {
        "user_index": np.arange(size),
        "target": np.arange(size) + 2,
        "history_length": np.full(size, 3),
        "history_popularity": np.zeros(size),
        "target_seen": np.zeros(size, dtype=bool),
        "target_known": np.ones(size, dtype=bool),
        "ranks": {("m", "step0"): np.array([1.0, 20.0, math.inf])[:size]},
        "answers": (("m", "step0"),),
        "k": (1, 10),
    }
    return UserTable(**{**values, **changes})


def test_metrics_are_values_of_users_by_name() -> None:
    found = make_table().metrics(("m", "step0"))
    assert found["recall@1"].tolist() == [1, 0, 0]
    assert set(found) == {f"{m}@{k}" for m in ("recall", "ndcg", "mrr") for k in (1, 10)}


def test_requests_of_a_user_are_averaged_first() -> None:
    table = make_table(user_index=np.array([5, 5, 9]))
    assert table.metrics(("m", "step0"), [1])["recall@1"].tolist() == [0.5, 0]
    assert table.num_users == 2
    assert table.means()["m/step0/recall@1"] == 0.25


def test_rows_choose_the_requests_that_count() -> None:
    table = make_table(user_index=np.array([5, 5, 9]))
    rows = np.array([True, False, True])
    assert table.metrics(("m", "step0"), [1], rows)["recall@1"].tolist() == [1, 0]


def test_per_user_orders_by_user_number() -> None:
    found = per_user(np.array([1.0, 2.0, 4.0]), np.array([3, 1, 3]))
    assert found.tolist() == [2.0, 2.5]


def test_merge_joins_the_scorers_of_equal_requests() -> None:
    other = make_table(ranks={("n", "score"): np.ones(3)}, answers=(("n", "score"),))
    both = make_table().merge(other)
    assert list(both.ranks) == [("m", "step0"), ("n", "score")]
    assert [answer for _, answer in both.heads()] == [True, True]


def test_merge_refuses_other_requests_protocols_and_repeated_names() -> None:
    table = make_table()
    with pytest.raises(ValueError, match="different requests"):
        table.merge(make_table(target=np.array([9, 9, 9])))
    with pytest.raises(ValueError, match="differ in filter_seen: True and False"):
        table.merge(make_table(filter_seen=False))
    with pytest.raises(ValueError, match=r"both tables hold \['m'\]"):
        table.merge(table)


def test_an_unknown_head_is_named() -> None:
    with pytest.raises(ValueError, match=r"\('m', 'x'\) is not in the table"):
        make_table().metrics(("m", "x"))


def test_a_table_without_lists_has_no_list_metrics() -> None:
    assert make_table().list_metrics(("m", "step0")) == {}
