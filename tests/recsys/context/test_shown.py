"""Lists that were shown, drawn into windows and dealt into groups."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_world import START, write_arrow

from recsys.context.config import ContextConfig
from recsys.context.shown import Shown, sample_lists, sample_requests
from recsys.data.dataset import Impressions

LISTS: list[dict[str, Any]] = [
    {"user": 0, "place": 0, "part": 0, "item": [2, 3, 4], "label": [0, 1, 0]},
    {"user": 0, "place": 2, "part": 0, "item": [5, 6], "label": [0, 0]},
    {"user": 0, "place": 5, "part": 0, "item": [7, 8, 9, 10, 11, 12], "label": [0, 0, 0, 2, 0, 1]},
    {"user": 0, "place": 6, "part": 2, "item": [2, 3], "label": [0, 1]},
    {"user": 2, "place": 1, "part": 0, "item": [3], "label": [1]},
]


@pytest.fixture
def lists(tmp_path: Path) -> Impressions:
    columns: dict[str, pa.Array] = {
        "user": pa.array([row["user"] for row in LISTS], pa.int32()),
        "timestamp": pa.array([START + i for i in range(len(LISTS))], pa.int64()),
        "place": pa.array([row["place"] for row in LISTS], pa.int32()),
        "part": pa.array([row["part"] for row in LISTS], pa.int8()),
        "event.device": pa.array([2, 3, 2, 3, 2], pa.int32()),
    }
    kinds = {"item": pa.int32(), "label": pa.int8()}
    for name, kind in kinds.items():
        columns[name] = pa.array([row[name] for row in LISTS], pa.large_list(kind))
    places = [list(range(1, len(row["item"]) + 1)) for row in LISTS]
    columns["position"] = pa.array(places, pa.large_list(pa.int16()))
    write_arrow(tmp_path / "00000.arrow", pa.table(columns))
    return Impressions(tmp_path / "00000.arrow")


def draw(lists: Impressions, windows: list[tuple[int, int, int]], requests: int = 8) -> Shown:
    row, first, length = torch.tensor(windows).unbind(dim=1)
    config = ContextConfig(candidates="impressions", requests_per_row=requests)
    return sample_requests(lists, row, first, length, config, np.random.default_rng(0))


def drawn(shown: Shown) -> list[set[int]]:
    return [set(i[r].tolist()) for i, r in zip(shown.index, shown.is_real, strict=True)]


def test_a_list_belongs_to_the_window_with_the_last_event_before_it(lists: Impressions) -> None:
    shown = draw(lists, [(0, 0, 4), (0, 4, 3), (1, 0, 3), (2, 0, 2)])
    assert drawn(shown) == [{0, 1}, {2}, set(), {4}]
    cuts = {int(i): int(c) for i, c in zip(shown.index[0], shown.cut[0], strict=True)}
    assert cuts[1] == 2
    assert shown.cut[1][shown.is_real[1]].tolist() == [1]


def test_lists_of_validation_and_test_are_never_drawn(lists: Impressions) -> None:
    assert drawn(draw(lists, [(0, 0, 9)])) == [{0, 1, 2}]


def test_no_more_lists_are_drawn_than_asked_for_and_none_twice(lists: Impressions) -> None:
    shown = draw(lists, [(0, 0, 9)], requests=2)
    assert shown.index.shape == (1, 2)
    assert len(drawn(shown)[0]) == 2


def test_requests_know_their_moment_and_what_they_brought(lists: Impressions) -> None:
    shown = draw(lists, [(0, 4, 3)])
    at = shown.is_real[0]
    assert shown.timestamp[0][at].tolist() == [START + 2]
    assert shown.asked["device"][0][at].tolist() == [2]


def test_items_are_dealt_with_their_label_and_position(lists: Impressions) -> None:
    shown = draw(lists, [(0, 0, 9), (2, 0, 2)])
    config = ContextConfig(candidates="impressions", group_size=4, groups=2)
    candidates, level = sample_lists(lists, shown, config, np.random.default_rng(1))
    assert candidates.item.shape == (*shown.index.shape, 2, 4)
    for b in range(2):
        for q in range(shown.index.shape[1]):
            found = zip(
                candidates.item[b, q].flatten().tolist(),
                level[b, q].flatten().tolist(),
                candidates.position[b, q].flatten().tolist(),
                strict=True,
            )
            row = LISTS[int(shown.index[b, q])]
            places = range(1, len(row["item"]) + 1)
            wanted = set(zip(row["item"], row["label"], places, strict=True))
            assert {f for f in found if f[0]} == (wanted if shown.is_real[b, q] else set())


def test_positives_stay_where_a_list_does_not_fit(lists: Impressions) -> None:
    shown = draw(lists, [(0, 4, 3)])
    config = ContextConfig(candidates="impressions", group_size=3, groups=1)
    for seed in range(5):
        candidates, level = sample_lists(lists, shown, config, np.random.default_rng(seed))
        real = shown.is_real[0]
        assert {10, 12} <= set(candidates.item[0][real].flatten().tolist())
        assert sorted(level[0][real].flatten().tolist()) == [0, 1, 2]


def test_users_without_lists_give_requests_of_no_candidates(lists: Impressions) -> None:
    shown = draw(lists, [(1, 0, 3)])
    config = ContextConfig(candidates="impressions", group_size=3, groups=1)
    candidates, level = sample_lists(lists, shown, config, np.random.default_rng(0))
    assert not candidates.item.any()
    assert not level.any()
