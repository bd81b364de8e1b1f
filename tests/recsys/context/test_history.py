from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_world import EVENT_FEATURES, START, User, write_dataset
from torch import Tensor

from recsys.batch import History
from recsys.context.config import ContextConfig
from recsys.context.history import (
    Window,
    add_boundaries,
    gap_bucket,
    longest_windows,
    read_window,
    token_places,
)
from recsys.data.dataset import Histories, PreparedDataset
from recsys.model.config import DataSizes, EncoderConfig
from recsys.model.tokens import HistoryTokens
from recsys.schema import SKIP
from recsys.types import BOUNDARY, UNKNOWN

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


# --- windows that are full, boundaries counted -----------------------------------------------

HISTORY = st.lists(st.tuples(st.integers(0, 99), st.integers(3, 4), st.integers(2, 3)), max_size=9)
BLOCKS = st.sampled_from(["none", "session", "domain", "behavior"])


def bucket_of(folder: Path, rows: list[list[tuple[int, int, int]]]) -> Histories:
    """Users of the given (pause, behavior, domain) events."""
    users = []
    for events in rows:
        pauses, behavior, domain = zip(*events, strict=True) if events else ((), (), ())
        times = [START + sum(pauses[: i + 1]) for i in range(len(pauses))]
        items = range(2, 2 + len(times))
        users.append(User(item=items, train_end=len(times), timestamp=times,
                          behavior=behavior, domain=domain))  # fmt: skip
    names = {"behaviors": ("click", "cart"), "domains": ("shop", "news")}
    return write_dataset(folder, users, num_trained=9, **names).buckets[0]


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(HISTORY, min_size=1, max_size=4), block_by=BLOCKS, size=st.integers(1, 12))
def test_the_longest_window_fits_and_one_more_event_would_not(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], block_by: Any, size: int
) -> None:
    bucket = bucket_of(tmp_path_factory.mktemp("longest"), rows)
    config = ContextConfig(max_history=size, block_by=block_by, session_gap_s=50)

    def tokens_of(window: Window) -> Tensor:
        history, domain = read_window(bucket, window, has_time=True)
        return add_boundaries(history, domain, config)[0].lengths

    row = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(r) + 1 for r in rows]))
    place = torch.cat([torch.arange(len(r) + 1) for r in rows])  # every moment of every user
    window, tokens = longest_windows(bucket, config, row, place)
    assert torch.equal(window.start + window.lengths, bucket.offsets[row] + place)
    assert torch.equal(tokens, tokens_of(window))
    assert (tokens <= size).all()
    older = (window.start > bucket.offsets[row]).nonzero()[:, 0]
    assert (window.start >= bucket.offsets[row]).all()
    longer = window.take(older)
    assert (tokens_of(Window(longer.start - 1, longer.lengths + 1)) > size).all()


def test_without_blocks_the_longest_window_is_the_last_events(bucket: Histories) -> None:
    rows, place = torch.tensor([0, 0, 1]), torch.tensor([5, 2, 2])
    window, tokens = longest_windows(bucket, ContextConfig(max_history=3), rows, place)
    assert (window.start.tolist(), window.lengths.tolist()) == ([2, 0, 5], [3, 2, 2])
    assert torch.equal(tokens, window.lengths)


def test_the_first_event_of_a_user_opens_no_block(bucket: Histories) -> None:
    """Whatever the user before did last; the last place stands for the end."""
    places = token_places(bucket, ContextConfig(block_by="behavior"))
    assert places.tolist() == [0, 1, 3, 4, 6, 7, 8, 9]
    assert token_places(bucket, ContextConfig()).tolist() == list(range(8))


def test_events_after_the_request_do_not_move_its_window(tmp_path: Path) -> None:
    past = [(0, 3, 2), (60, 3, 2), (1, 4, 2), (70, 3, 3)]
    one = bucket_of(tmp_path / "a", [[*past, (1, 3, 3), (1, 3, 3)]])
    other = bucket_of(tmp_path / "b", [[*past, (90, 4, 2), (90, 3, 3)]])
    request = torch.tensor([0]), torch.tensor([4])
    for block_by in ("session", "domain", "behavior"):
        for size in range(1, 8):
            config = ContextConfig(max_history=size, block_by=block_by, session_gap_s=50)
            found = [longest_windows(b, config, *request) for b in (one, other)]
            assert found[0][0].start == found[1][0].start
            assert found[0][1] == found[1][1]


# --- all behaviors in one history ----------------------------------------------------------------

NAMES = ("click", "cart", "order", "favourite", SKIP)


@pytest.fixture
def merged(tmp_path: Path) -> PreparedDataset:
    """One user who saw, passed over, clicked, saved, carted and ordered the same item."""
    user = User(item=[2] * 6, behavior=[7, 3, 6, 4, 5, 3], train_end=6)
    funnel = ("click", "cart", "order")
    names = {"behaviors": NAMES, "funnel": funnel, "negative_feedback": True}
    return write_dataset(tmp_path, [user], num_trained=1, **names)


def tokens_of(dataset: PreparedDataset) -> tuple[HistoryTokens, History, Tensor]:
    """The tokens of the first user's history, as the model embeds them."""
    manifest = dataset.manifest
    length = torch.tensor([len(dataset.buckets[0].events["item"].row(0))])
    window = Window(torch.tensor([0]), length)
    history, _ = read_window(dataset.buckets[0], window, has_time=False)
    config = EncoderConfig(width=4, num_heads=1, dropout=0.0, positions="rotary")
    tokens = HistoryTokens(config, DataSizes.of(manifest))
    return tokens, history, tokens(history, torch.zeros(1, int(length), 4))[0]


def test_every_behavior_is_a_token_of_one_history_with_an_embedding_of_its_own(
    merged: PreparedDataset,
) -> None:
    """The funnel's, a favourite outside it, and what was shown and passed over."""
    tokens, history, embedded = tokens_of(merged)
    assert history.item.tolist() == [[2] * 6]
    assert [NAMES[code - 3] for code in history.behavior[0].tolist()] == [
        SKIP, "click", "favourite", "cart", "order", "click",
    ]  # fmt: skip
    table = tokens.tables["behavior"].weight
    assert table.shape[0] == 3 + len(NAMES)
    apart = embedded - embedded[1]  # all is equal but the behavior
    torch.testing.assert_close(apart, table[history.behavior[0]] - table[3])
    assert len({tuple(t.tolist()) for t in embedded[:5]}) == 5
    embedded[0].sum().backward()
    trained = table.grad.abs().sum(dim=1).nonzero()[:, 0].tolist()
    assert trained == [3 + NAMES.index(SKIP)]


def test_a_passed_over_item_is_read_and_belongs_to_no_task(merged: PreparedDataset) -> None:
    manifest = merged.manifest
    assert manifest.codes_at_least(SKIP) == (7,)
    for task in (*manifest.tasks, None):
        assert 7 not in manifest.codes_at_least(task)
    assert 6 in manifest.codes_at_least(None)  # a favourite counts where every event does
    assert not any(6 in manifest.codes_at_least(task) for task in manifest.tasks)


def test_a_behavior_that_training_never_saw_is_read_apart_from_every_name(tmp_path: Path) -> None:
    user = User(item=[2] * 3, behavior=[3, UNKNOWN, 4], train_end=1)
    dataset = write_dataset(tmp_path, [user], num_trained=1, behaviors=("click", "cart"))
    _, history, embedded = tokens_of(dataset)
    assert history.behavior.tolist() == [[3, UNKNOWN, 4]]
    assert history.is_event.all()  # an event, not a boundary
    assert len({tuple(t.tolist()) for t in embedded}) == 3


def test_behaviors_are_blocks_where_they_are_declared_so(merged: PreparedDataset) -> None:
    window = Window(torch.tensor([0]), torch.tensor([6]))
    history, domain = read_window(merged.buckets[0], window, has_time=True)
    blocks, _ = add_boundaries(history, domain, ContextConfig(block_by="behavior"))
    assert blocks.behavior[0].tolist() == [7, 2, 3, 2, 6, 2, 4, 2, 5, 2, 3]


# --- properties ----------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(HISTORY, min_size=1, max_size=4), block_by=BLOCKS, data=st.data())
def test_rows_are_read_alike_alone_padded_and_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], block_by: Any, data: st.DataObject
) -> None:
    bucket = bucket_of(tmp_path_factory.mktemp("order"), rows)
    config = ContextConfig(block_by=block_by, session_gap_s=50)
    order = torch.tensor(data.draw(st.permutations(range(len(rows)))))
    start, lengths = bucket.offsets[:-1], bucket.offsets.diff()

    def tensors(rows: Tensor) -> dict[str, Tensor]:
        window = Window(start[rows], lengths[rows])
        history, places = add_boundaries(*read_window(bucket, window, has_time=True), config)
        names = ("item", "behavior", "timestamp", "gap", "block", "lengths")
        real = torch.arange(places.shape[1]) < window.lengths[:, None]
        return {n: getattr(history, n) for n in names} | {"places": places.where(real, 0)}

    whole, permuted = tensors(torch.arange(len(rows))), tensors(order)
    for name, value in whole.items():
        assert torch.equal(value[order], permuted[name]), name
    for row in range(len(rows)):
        for name, value in tensors(torch.tensor([row])).items():
            if name == "lengths":
                assert value[0] == whole[name][row]
                continue
            width = value.shape[1]
            assert torch.equal(value[0], whole[name][row, :width]), name
            assert not whole[name][row, width:].any(), name
