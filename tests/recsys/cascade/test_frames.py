from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from recsys.cascade.frames import ItemNames, moment_s, plain, score_columns, to_arrow
from recsys.cascade.lists import RankedLists
from recsys.data.dataset import Catalogue


def catalogue_of(names: list[str]) -> Catalogue:
    size = len(names) + 2
    zeros = torch.zeros(size, dtype=torch.long)
    return Catalogue(pa.array(["", "", *names]), zeros, zeros, len(names), (), {}, {})


NAN = torch.nan
LISTS = RankedLists(
    ids=torch.tensor([[3, 2], [2, -1], [-1, -1]]),
    scores=torch.tensor([[0.5, 0.25], [4.0, -torch.inf], [-torch.inf, -torch.inf]]),
    source=torch.tensor([[0, 1], [2, 2], [1, 1]], dtype=torch.int8),
    retrieval=torch.tensor([[0.125, 0.25], [NAN, NAN], [NAN, NAN]]),
    probabilities=torch.tensor([[[0.75, 0.5], [NAN, NAN]], [[NAN, NAN]] * 2, [[NAN, NAN]] * 2]),
)
USERS = pa.array(["u", "v", "w"], pa.large_string())


def test_lists_become_a_row_a_recommendation() -> None:
    frame = plain(score_columns(USERS, LISTS, ItemNames(catalogue_of(["a", "b"]))))
    assert frame.to_dict("list") == {
        "user_id": ["u", "u", "v"],
        "item_id": ["b", "a", "a"],
        "rank": [1, 2, 1],
        "score": [0.5, 0.25, 4.0],
        "source": ["cascade", "retrieval", "popular"],
    }


def test_the_cascades_table_tells_what_is_known_of_each_item_and_leaves_the_rest_empty() -> None:
    names = ItemNames(catalogue_of(["a", "b"]))
    table = score_columns(USERS, LISTS, names, ("click", "order"))
    assert table.column_names == [
        *("user_id", "item_id", "rank", "score", "p_click", "p_order", "retrieval_score", "source")
    ]
    assert table["p_click"].to_pylist() == [0.75, None, None]
    assert table["p_order"].to_pylist() == [0.5, None, None]
    assert table["retrieval_score"].to_pylist() == [0.125, 0.25, None]
    assert plain(table)["p_click"].isna().tolist() == [False, True, True]


def test_integer_ids_come_back_as_integers_unless_one_is_not() -> None:
    names = ItemNames(catalogue_of(["10", "7"]), integers=True)
    assert names.columns(np.array([3, 2]))["item_id"].to_pylist() == [7, 10]
    mixed = ItemNames(catalogue_of(["10", "x7"]), integers=True)
    assert mixed.columns(np.array([3]))["item_id"].to_pylist() == ["x7"]


def test_items_of_several_domains_show_both_parts_of_their_key() -> None:
    catalogue = catalogue_of(["food\u241f1", "books\u241f1"])
    names = ItemNames(catalogue, with_domain=True, integers=True)
    table = score_columns(USERS, LISTS, names)
    assert table["item_id"].to_pylist() == [1, 1, 1]
    assert table["domain"].to_pylist() == ["books", "food", "food"]
    known, unknown = names.internal([("books", 1), ("food", "1"), ("food", 2)])
    assert known.tolist() == [3, 2]
    assert unknown == [("food", 2)]


def test_every_kind_of_frame_gives_the_same_table() -> None:
    pandas = pd.DataFrame({"a": [1, 2], "b": ["x", "y"], "c": [0, 0]}, index=[5, 6])
    columns = pandas.to_dict("list")
    for frame in (pandas, pl.DataFrame(columns), pa.table(columns)):
        table = to_arrow(frame, ["b", "a", "missing"])
        assert table.to_pydict() == {"b": ["x", "y"], "a": [1, 2]}
    with pytest.raises(TypeError, match="not list"):
        to_arrow([1], ["a"])  # type: ignore[arg-type]


def test_moments_are_seconds_in_utc() -> None:
    noon = datetime(2024, 1, 1, 12)
    expected = int(noon.replace(tzinfo=UTC).timestamp())
    east = noon.replace(tzinfo=UTC).astimezone(timezone(timedelta(hours=2)))
    texts = (str(expected), "2024-01-01T12:00", "2024-01-01T14:00+02:00")
    for moment in (expected, noon, east, *texts):
        assert moment_s(moment) == expected
    assert moment_s(pd.Timestamp(noon)) == expected
    assert moment_s(date(2024, 1, 1)) == moment_s("2024-01-01") == expected - 43_200
    assert moment_s(datetime(1970, 1, 1, 0, 0, 1, 900_000)) == 1
    assert moment_s(None) is None
    with pytest.raises(ValueError, match=r"as_of \('yesterday'\) must be seconds"):
        moment_s("yesterday")
    with pytest.raises(ValueError, match=r"as_of \(1.5\)"):
        moment_s(1.5)  # type: ignore[arg-type]
