from dataclasses import replace

import pytest
import torch
from tiny_world import EVENT_FEATURES, START, User, write_dataset
from torch import Tensor

from recsys.batch import History
from recsys.context.config import ContextConfig
from recsys.context.history import Window, add_boundaries, gap_bucket, read_window
from recsys.data.dataset import Histories
from recsys.types import BOUNDARY

DAY = 86_400


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Histories:
    """Two users, five and two events, with domains and event features."""
    users = [
        User(
            item=[2, 3, 4, 5, 6],
            train_end=5,
            timestamp=[START, START + 1, START + 61, START + DAY, START + DAY],
            behavior=[3, 3, 4, 4, 3],
            domain=[2, 2, 2, 3, 3],
            event={"device": [1, 2, 3, 1, 2], "amount": [0.1, 0.2, 0.3, 0.4, 0.5]},
        ),
        User(
            item=[7, 8],
            train_end=2,
            behavior=[4, 4],
            event={"device": [3, 3], "amount": [0.6, 0.7]},
        ),
    ]
    dataset = write_dataset(
        tmp_path_factory.mktemp("history"),
        users,
        num_trained=7,
        behaviors=("click", "cart"),
        domains=("shop", "news"),
        event_features=EVENT_FEATURES,
    )
    return dataset.buckets[0]


def read(bucket: Histories, start: list[int], lengths: list[int]) -> tuple[History, Tensor]:
    window = Window(torch.tensor(start), torch.tensor(lengths))
    return read_window(bucket, window, has_time=True)


def test_a_window_is_read_event_by_event_and_padded_on_the_right(bucket: Histories) -> None:
    history, domain = read(bucket, [1, 5], [4, 2])
    assert history.item.tolist() == [[3, 4, 5, 6], [7, 8, 0, 0]]
    assert history.behavior.tolist() == [[3, 4, 4, 3], [4, 4, 0, 0]]
    assert history.block.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert history.lengths.tolist() == [4, 2]
    # The first event of a window has no event before it; then 60 s, DAY - 61 s, 0 s.
    assert history.gap.tolist() == [[0, 1 + 5, 1 + 16, 1], [0, 1 + 11, 0, 0]]
    assert history.features["device"].tolist() == [[2, 3, 1, 2], [3, 3, 0, 0]]
    amount = torch.tensor([[0.2, 0.3, 0.4, 0.5], [0.6, 0.7, 0, 0]])
    torch.testing.assert_close(history.features["amount"], amount)
    assert domain.tolist() == [[2, 2, 3, 3], [2, 2, 0, 0]]


def test_an_order_column_has_no_gaps(bucket: Histories) -> None:
    window = Window(torch.tensor([0]), torch.tensor([5]))
    history, _ = read_window(bucket, window, has_time=False)
    assert history.gap.sum() == 0


def test_rows_without_events_are_all_padding(bucket: Histories) -> None:
    history, _ = read(bucket, [0, 5], [0, 0])
    assert history.item.tolist() == [[0], [0]]
    assert not history.is_real.any()


def test_gap_buckets_double() -> None:
    assert gap_bucket(torch.tensor([-9, 0, 1, 2, 3, 6, 7, 2**60])).tolist() == [
        1, 1, 2, 2, 3, 3, 4, 39,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("block_by", "item", "block", "moved_to"),
    [
        ("none", [[2, 3, 4, 5, 6], [7, 8, 0, 0, 0]], [[1] * 5, [1, 1, 0, 0, 0]], [0, 1, 2, 3, 4]),
        (
            "session",
            [[2, 3, 4, 0, 5, 6], [7, 0, 8, 0, 0, 0]],
            [[1, 1, 1, 1, 2, 2], [1, 1, 2, 0, 0, 0]],
            [0, 1, 2, 4, 5],
        ),
        (
            "domain",
            [[2, 3, 4, 0, 5, 6], [7, 8, 0, 0, 0, 0]],
            [[1, 1, 1, 1, 2, 2], [1, 1, 0, 0, 0, 0]],
            [0, 1, 2, 4, 5],
        ),
        (
            "behavior",
            [[2, 3, 0, 4, 5, 0, 6], [7, 8, 0, 0, 0, 0, 0]],
            [[1, 1, 1, 2, 2, 2, 3], [1, 1, 0, 0, 0, 0, 0]],
            [0, 1, 3, 4, 6],
        ),
    ],
)
def test_blocks_are_numbered_from_the_oldest_and_closed_by_a_boundary(
    bucket: Histories,
    block_by: str,
    item: list[list[int]],
    block: list[list[int]],
    moved_to: list[int],
) -> None:
    plain, domain = read(bucket, [0, 5], [5, 2])
    history, places = add_boundaries(plain, domain, ContextConfig(block_by=block_by))  # type: ignore[arg-type]
    assert history.item.tolist() == item
    assert history.block.tolist() == block
    assert places[0].tolist() == moved_to
    is_boundary = (history.behavior == BOUNDARY).tolist()
    real = history.is_real.tolist()
    assert is_boundary == [
        [i == 0 and r for i, r in zip(*rows, strict=True)] for rows in zip(item, real, strict=True)
    ]
    assert history.lengths.tolist() == [sum(row) for row in real]
    # Whatever an event carried moves with it; a boundary happens when the event before it did.
    for old, new in ((plain.timestamp, history.timestamp), (plain.gap, history.gap)):
        assert torch.equal(new[0, places[0]], old[0])
    assert torch.equal(history.features["amount"][0, places[0]], plain.features["amount"][0])
    assert torch.equal(history.behavior[0, places[0]], plain.behavior[0])
    for row, column in (history.behavior == BOUNDARY).nonzero().tolist():
        assert history.timestamp[row, column] == history.timestamp[row, column - 1]
        assert history.gap[row, column] == 0


def test_the_pause_that_opens_a_session_is_declared(bucket: Histories) -> None:
    plain, domain = read(bucket, [0], [5])
    short = ContextConfig(block_by="session", session_gap_s=59)
    exact = ContextConfig(block_by="session", session_gap_s=60)
    assert add_boundaries(plain, domain, short)[0].lengths.tolist() == [7]
    assert add_boundaries(plain, domain, exact)[0].lengths.tolist() == [6]


def test_a_boundary_tells_nothing_before_the_event_that_opens_the_next_block(
    bucket: Histories,
) -> None:
    """Cutting the last event off leaves no trace that a new block was about to begin."""
    config = ContextConfig(block_by="behavior")
    whole, places = add_boundaries(*read(bucket, [0], [5]), config)
    shorter, _ = add_boundaries(*read(bucket, [0], [4]), config)
    n = int(places[0, 3]) + 1
    assert torch.equal(whole.item[:, :n], shorter.item)
    assert torch.equal(whole.block[:, :n], shorter.block)


def test_what_padding_holds_opens_no_block(bucket: Histories) -> None:
    plain, domain = read(bucket, [0, 5], [5, 2])
    noisy = replace(plain, behavior=torch.where(plain.is_real, plain.behavior, 9))
    config = ContextConfig(block_by="behavior")
    assert torch.equal(
        add_boundaries(plain, domain, config)[0].lengths,
        add_boundaries(noisy, domain, config)[0].lengths,
    )
