"""Two users in two buckets; every list and every event is known by heart."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from tiny_world import HOUR, START, User, write_arrow, write_dataset

from recsys.context.config import ContextConfig
from recsys.context.impressions import RequestLists, impression_batches
from recsys.data.dataset import Jagged, PreparedDataset
from recsys.schema import ColumnSpec, Feature


def jagged(rows: Sequence[Sequence[int]]) -> Jagged:
    offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    return Jagged(torch.tensor([x for row in rows for x in row], dtype=torch.int32), offsets)


def lists(
    user: Sequence[int],
    place: Sequence[int],
    part: Sequence[int],
    item: Sequence[Sequence[int]],
    label: Sequence[Sequence[int]],
    device: Sequence[int],
) -> RequestLists:
    return RequestLists(
        user=torch.tensor(user),
        timestamp=torch.tensor([START + HOUR * p for p in place]),
        place=torch.tensor(place, dtype=torch.int32),
        part=torch.tensor(part),
        item=jagged(item),
        label=jagged(label),
        position=jagged([range(1, len(row) + 1) for row in item]),
        situation={"device": torch.tensor(device, dtype=torch.int32)},
    )


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return write_dataset(
        tmp_path,
        [
            User(item=[2, 3, 4, 5], train_end=2, valid_end=3, event={"device": [2, 2, 2, 2]}),
            User(item=[6, 7], train_end=1, valid_end=1, event={"device": [3, 3]}),
        ],
        num_trained=6,
        buckets=(1, 1),
        event_features=(Feature(name="device", kind="categorical", rows=4),),
        columns=ColumnSpec(event_features=("device",), situation=("device",)),
    )


@pytest.fixture
def shown() -> list[RequestLists]:
    first = lists(
        [0, 0, 0], [1, 3, 3], [0, 2, 2], [[2], [5, 6, 7], []], [[0], [0, 2, 1], []], [2] * 3
    )
    second = lists([0], [1], [2], [[7, 1]], [[1, 0]], [3])
    return [first, second]


CONFIG = ContextConfig(max_history=2, group_size=2)


def test_a_list_comes_in_its_order_with_its_levels_and_the_events_before_it(
    dataset: PreparedDataset, shown: list[RequestLists]
) -> None:
    first, second = impression_batches(dataset, CONFIG, part="test", batch_size=4, lists=shown)
    assert first.candidates.item.tolist() == [[[[5, 6], [7, 0]]]]
    assert first.candidates.position is not None
    assert first.candidates.position.tolist() == [[[[1, 2], [3, 0]]]]
    assert first.level.tolist() == [[[[0, 2], [1, 0]]]]
    # Three events came before, the window holds the last two.
    assert first.context.history.item.tolist() == [[3, 4]]
    assert first.context.requests.cut.tolist() == [[2]]
    assert first.context.requests.timestamp.tolist() == [[START + 3 * HOUR]]
    assert first.context.requests.situation["device"].tolist() == [[2]]
    assert second.candidates.item.tolist() == [[[[7, 1]]]]
    assert second.context.history.item.tolist() == [[6]]
    assert second.context.requests.situation["device"].tolist() == [[3]]


def test_users_and_requests_are_counted_through_the_buckets(
    dataset: PreparedDataset, shown: list[RequestLists]
) -> None:
    found = list(impression_batches(dataset, CONFIG, part="test", batch_size=4, lists=shown))
    assert [batch.user_index.tolist() for batch in found] == [[0], [1]]
    assert [batch.request.tolist() for batch in found] == [[1], [3]]  # the empty list is left out


def test_only_the_asked_part_is_read(dataset: PreparedDataset, shown: list[RequestLists]) -> None:
    (found,) = impression_batches(dataset, CONFIG, part="training", batch_size=4, lists=shown)
    assert found.candidates.item.tolist() == [[[[2, 0]]]]
    assert not list(
        impression_batches(dataset, CONFIG, part="validation", batch_size=4, lists=shown)
    )


def test_fewer_requests_are_spread_over_all_buckets(
    dataset: PreparedDataset, shown: list[RequestLists]
) -> None:
    many = lists([0] * 9, [3] * 9, [2] * 9, [[5]] * 9, [[0]] * 9, [2] * 9)
    batches = impression_batches(
        dataset, CONFIG, part="test", batch_size=4, max_requests=3, lists=[many, shown[1]]
    )
    assert [batch.request.tolist() for batch in batches] == [[0, 4], [9]]


def test_the_data_sets_own_impressions_are_read_where_no_lists_are_given(tmp_path: Path) -> None:
    dataset = write_dataset(
        tmp_path, [User(item=[2, 3], train_end=1)], num_trained=2, num_impressions=1
    )
    (tmp_path / "impressions").mkdir()
    columns = {
        "user": pa.array([0], pa.int32()),
        "timestamp": pa.array([START + 1]),
        "place": pa.array([1], pa.int32()),
        "item": pa.array([[3, 2]], pa.large_list(pa.int32())),
        "label": pa.array([[1, 0]], pa.large_list(pa.int8())),
        "position": pa.array([[1, 2]], pa.large_list(pa.int16())),
        "part": pa.array([2], pa.int8()),
    }
    write_arrow(tmp_path / "impressions" / "00000.arrow", pa.table(columns))
    (found,) = impression_batches(dataset, CONFIG, part="test", batch_size=4)
    assert found.candidates.item.tolist() == [[[[3, 2]]]]
    assert found.level.tolist() == [[[[1, 0]]]]
    assert found.context.requests.timestamp.tolist() == [[START + 1]]


def test_a_data_set_without_impressions_says_how_to_get_them(dataset: PreparedDataset) -> None:
    with pytest.raises(ValueError, match="no impressions: prepare it with --impressions"):
        next(impression_batches(dataset, CONFIG, part="test", batch_size=4))
