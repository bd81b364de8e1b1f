"""A model whose query names its favourites, on histories known by heart."""

from pathlib import Path

import pytest
import torch
from tiny_world import User, write_dataset
from torch import Tensor

from recsys.batch import ContextBatch
from recsys.context.config import ContextConfig
from recsys.context.impressions import impression_batches
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.candidates import retrieved_lists
from recsys.schema import SplitSpec

CONFIG = ContextConfig(group_size=4)


class Ascending:
    """Prefers low ids."""

    def item_vectors(self) -> Tensor:
        return -torch.arange(9.0)[:, None]

    def answers(self, context: ContextBatch, items: Tensor | None = None) -> Tensor:
        return torch.ones(context.num_rows, 1, 1)


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    """Six trained items and one untrained; clicks are 3, carts 4, orders 5."""
    users = [
        # Asked at the third event: next click 4, next cart 5 (in the part), no order.
        User(item=[2, 3, 4, 5, 6], behavior=[3, 3, 3, 4, 5], train_end=2, valid_end=4),
        User(item=[7, 2, 2], behavior=[3, 3, 5], train_end=1, valid_end=3),
        User(item=[3, 2, 4], behavior=[3, 3, 5], train_end=1, valid_end=1),
    ]
    return write_dataset(
        tmp_path,
        users,
        num_trained=6,
        num_untrained=1,
        buckets=(2, 1),
        behaviors=("click", "cart", "order"),
        funnel=("click", "cart", "order"),
        split=SplitSpec(target="first"),
    )


def test_lists_are_the_retrievals_best_with_the_next_item_of_every_task(
    dataset: PreparedDataset,
) -> None:
    first, second = retrieved_lists(
        dataset, Ascending(), CONFIG, part="validation", num_candidates=3
    )
    assert first.user.tolist() == [0, 1]
    assert first.place.tolist() == [2, 1]
    assert first.part.tolist() == [1, 1]
    # User 0 has seen 2 and 3; 4 is clicked next, 5 carted next, and the order of 6 is not of the
    # part. User 1 has seen 7; 2 is clicked next and ordered next, and the order counts.
    assert [first.item.row(i).tolist() for i in (0, 1)] == [[4, 5, 6], [2, 3, 4]]
    assert [first.label.row(i).tolist() for i in (0, 1)] == [[1, 2, 0], [3, 0, 0]]
    assert len(second.user) == 0


def test_seen_items_stay_where_they_may_be_asked_for_again(dataset: PreparedDataset) -> None:
    lists = retrieved_lists(
        dataset, Ascending(), CONFIG, part="validation", num_candidates=2, filter_seen=False
    )
    assert [lists[0].item.row(i).tolist() for i in (0, 1)] == [[2, 3], [2, 3]]
    assert [lists[0].label.row(i).tolist() for i in (0, 1)] == [[0, 0], [3, 0]]


def test_the_test_part_sees_to_the_end_and_short_lists_stay_short(dataset: PreparedDataset) -> None:
    lists = retrieved_lists(dataset, Ascending(), CONFIG, part="test", num_candidates=9)
    assert lists[0].item.row(0).tolist() == [6, 7]  # 8 has no training event
    assert lists[0].label.row(0).tolist() == [3, 0]
    assert lists[1].item.row(0).tolist() == [2, 4, 5, 6, 7]
    # Of the third user: next click 2, next order 4.
    assert lists[1].label.row(0).tolist() == [1, 3, 0, 0, 0]


def test_retrieved_lists_are_read_as_shown_ones_are(dataset: PreparedDataset) -> None:
    lists = retrieved_lists(dataset, Ascending(), CONFIG, part="validation", num_candidates=3)
    (batch,) = impression_batches(dataset, CONFIG, part="validation", batch_size=4, lists=lists)
    by_user = dict(zip(batch.user_index.tolist(), batch.level.flatten(1).tolist(), strict=True))
    assert by_user == {0: [1, 2, 0, 0], 1: [3, 0, 0, 0]}


def test_no_candidates_are_refused(dataset: PreparedDataset) -> None:
    with pytest.raises(ValueError, match=r"num_candidates \(0\) must be at least 1"):
        retrieved_lists(dataset, Ascending(), CONFIG, part="test", num_candidates=0)
