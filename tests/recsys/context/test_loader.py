from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import HOUR, START, User, write_dataset
from torch import Tensor

from recsys.context.config import ContextConfig
from recsys.context.loader import TrainingBatches, evaluation_batches, history_batches
from recsys.data.dataset import PreparedDataset
from recsys.schema import SplitSpec
from recsys.types import BOUNDARY, UNKNOWN

CLICK, CART, ORDER, SAVE = 3, 4, 5, 6
NAMES = ("click", "cart", "order", "save")


def unique_users(train: Sequence[int], later: int = 2) -> list[User]:
    """Users whose every event is of an item of its own."""
    users, first = [], 2
    for n in train:
        items = range(first, first + n + later)
        users.append(User(item=items, train_end=n, valid_end=n + later // 2))
        first += n + later
    return users


@pytest.fixture(scope="module")
def unique(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Histories of 0 to 23 training events in three buckets, the second one empty."""
    users = unique_users([5, 23, 1, 0, 9, 8, 2, 13])
    count = sum(len(u.item) for u in users)
    folder = tmp_path_factory.mktemp("unique")
    return write_dataset(folder, users, num_trained=count, buckets=(5, 0, 3))


def flat(value: Any) -> list[Tensor]:
    """Every tensor of a batch, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for key in sorted(value) for t in flat(value[key])]
    if isinstance(value, tuple):
        return [t for part in value for t in flat(part)]
    return [t for f in fields(value) for t in flat(getattr(value, f.name))] if is_dataclass(
        value
    ) else []  # fmt: skip


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(flat(one), flat(other), strict=True))


@pytest.mark.parametrize("block_by", ["none", "session"])
@pytest.mark.parametrize("max_history", [1, 4, 8, 50])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_an_epoch_has_every_training_target_exactly_once(
    unique: PreparedDataset, max_history: int, rows: int, block_by: Any
) -> None:
    config = ContextConfig(max_history=max_history, block_by=block_by, session_gap_s=60)
    batches = TrainingBatches(unique, config, rows=rows, seed=3)
    expected = {
        item
        for bucket in unique.buckets
        for row in range(bucket.num_users)
        for item in bucket.events["item"].row(row)[1 : int(bucket.train_end[row])].tolist()
    }
    for epoch in range(3):
        targets: Counter[int] = Counter()
        stream = list(batches.epoch(epoch))
        assert len(stream) == batches.num_batches(epoch)
        for context, labels in stream:
            history = context.history
            assert history.item.shape[0] <= rows
            assert history.item.shape[1] <= max_history
            assert int(history.lengths.max()) == history.item.shape[1]
            supervised = labels.next_item != 0
            targets.update(labels.next_item[supervised].tolist())
            # The target of a position is the event right after it.
            assert torch.equal(history.item[supervised] + 1, labels.next_item[supervised])
        assert set(targets) == expected
        assert set(targets.values()) == {1}


@pytest.mark.parametrize("block_by", ["none", "session", "domain", "behavior"])
def test_windows_are_cut_where_they_are_full_boundary_tokens_counted(
    tmp_path: Path, block_by: Any
) -> None:
    g = torch.Generator().manual_seed(1)
    kinds = torch.randint(0, 2, (2, 60), generator=g)
    pauses = torch.randint(1, 120, (60,), generator=g)
    user = User(
        item=range(2, 62),
        train_end=60,
        behavior=(CLICK + kinds[0]).tolist(),
        domain=(2 + kinds[1]).tolist(),
        timestamp=(START + pauses.cumsum(0)).tolist(),
    )
    names = {"behaviors": NAMES, "domains": ("shop", "news")}
    dataset = write_dataset(tmp_path, [user], num_trained=60, **names)
    config = ContextConfig(max_history=9, block_by=block_by, session_gap_s=60)
    windows = {
        int(items[0]): int(length)
        for context, _ in TrainingBatches(dataset, config, rows=50).epoch(0)
        for items, length in zip(context.history.item, context.history.lengths, strict=True)
    }
    tokens = [windows[first] for first in sorted(windows)]
    assert max(tokens) <= 9
    # Where a block ends with a window, its boundary token is left out.
    assert set(tokens[1:-1]) <= ({9} if block_by == "none" else {8, 9})


def test_windows_start_elsewhere_every_epoch(unique: PreparedDataset) -> None:
    batches = TrainingBatches(unique, ContextConfig(max_history=4), rows=50)

    def starts(epoch: int) -> set[int]:
        return {i for c, _ in batches.epoch(epoch) for i in c.history.item[:, 0].tolist()}

    assert len({frozenset(starts(epoch)) for epoch in range(4)}) > 1


def test_requests_see_the_events_before_their_moment_and_are_labelled_with_the_next(
    unique: PreparedDataset,
) -> None:
    config = ContextConfig(max_history=30, requests_per_row=4)
    for context, labels in TrainingBatches(unique, config, rows=3).epoch(0):
        history, requests = context.history, context.requests
        assert labels.task_item.shape == (*requests.cut.shape, 1)
        for row, length in enumerate(history.lengths.tolist()):
            real = requests.is_real[row]
            cut = requests.cut[row][real]
            assert len(cut) == min(4, length)
            assert len(set(cut.tolist())) == len(cut)  # drawn without replacement
            assert ((cut >= 1) & (cut <= length)).all()
            last = history.item[row, cut - 1]
            assert torch.equal(labels.task_item[row, real, 0], last + 1)
            # One event an hour: a request happens when its target does.
            when = history.timestamp[row, cut - 1] + HOUR
            assert torch.equal(requests.timestamp[row][real], when)
            assert (requests.gap[row][real] == 1 + 11).all()
            assert torch.equal(requests.situation["hour"][row][real], (when % 86_400) // HOUR + 1)
            assert (requests.cut[row][~real] == 0).all()
            assert (labels.task_item[row][~real] == 0).all()


def test_every_position_becomes_a_request_sooner_or_later(unique: PreparedDataset) -> None:
    batches = TrainingBatches(unique, ContextConfig(max_history=30, requests_per_row=1), rows=100)
    asked: set[int] = set()
    for epoch in range(60):
        for _, labels in batches.epoch(epoch):
            asked |= set(labels.task_item.flatten().tolist())
    first_user = unique.buckets[0].events["item"].row(0)[1:5].tolist()
    assert set(first_user) <= asked


def test_no_requests_at_all_is_a_choice(unique: PreparedDataset) -> None:
    config = ContextConfig(max_history=6, requests_per_row=0)
    for context, labels in TrainingBatches(unique, config, rows=3).epoch(0):
        assert context.requests.cut.shape == (context.num_rows, 0)
        assert labels.task_item.shape == (context.num_rows, 0, 1)


def test_an_epoch_is_a_function_of_seed_and_number(unique: PreparedDataset) -> None:
    def stream(seed: int, epoch: int) -> list[Any]:
        config = ContextConfig(max_history=5)
        return list(TrainingBatches(unique, config, rows=2, seed=seed).epoch(epoch))

    torch.manual_seed(1)
    first = stream(0, 0)
    torch.manual_seed(2)
    again = stream(0, 0)
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    for other in (stream(0, 1), stream(1, 0)):
        orders = [[c.history.item[:, 0].tolist() for c, _ in batches] for batches in (first, other)]
        assert orders[0] != orders[1]


@pytest.mark.parametrize("start", [1, 2, 7, 1000])
def test_starting_at_a_batch_equals_skipping_those_before_it(
    unique: PreparedDataset, start: int
) -> None:
    batches = TrainingBatches(unique, ContextConfig(max_history=5), rows=2)
    whole, rest = list(batches.epoch(4)), list(batches.epoch(4, start=start))
    assert len(rest) == max(0, len(whole) - start)
    assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


def planted(users: list[User], folder: Path) -> PreparedDataset:
    return write_dataset(
        folder,
        users,
        num_trained=30,
        behaviors=NAMES,
        funnel=("click", "cart", "order"),
        buckets=(2, 2),
    )


def test_a_planted_future_changes_no_training_batch(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)

    def draw(low: int, high: int, n: int) -> list[int]:
        return torch.randint(low, high, (n,), generator=g).tolist()

    users = [
        User(item=draw(2, 32, 9), behavior=draw(3, 7, 9), train_end=n, valid_end=n + 1)
        for n in (3, 7, 5, 6)
    ]
    changed = []
    for u in users:
        n, late = u.train_end, 9 - u.train_end
        times = [START + HOUR * i for i in range(n)] + [START + 10**6 + i for i in range(late)]
        changed.append(
            replace(
                u,
                item=[*u.item[:n], *draw(2, 32, late)],
                behavior=[*u.behavior[:n], *[ORDER] * late],
                timestamp=times,
            )
        )
    one, other = planted(users, tmp_path / "a"), planted(changed, tmp_path / "b")
    for block_by in ("none", "behavior", "session"):
        config = ContextConfig(max_history=6, requests_per_row=6, block_by=block_by)
        for epoch in range(2):
            pair = [list(TrainingBatches(d, config, rows=2).epoch(epoch)) for d in (one, other)]
            assert all(same(a, b) for a, b in zip(*pair, strict=True))
    # The change is not invisible as such: evaluation sees it.
    asked = [
        [b.target.tolist() for b in evaluation_batches(d, config, part="test", batch_size=9)]
        for d in (one, other)
    ]
    assert asked[0] != asked[1]


def test_labels_of_a_funnel_nest_and_stop_at_the_end_of_training(tmp_path: Path) -> None:
    user = User(
        item=[2, 3, 4, 5, 6, 7, 8],
        behavior=[CLICK, SAVE, CART, CLICK, ORDER, CLICK, ORDER],
        train_end=6,
    )
    other = User(item=[9, 9, 9], behavior=[CLICK, ORDER, ORDER], train_end=2)
    for target in (None, "cart", "click"):  # the ranking learns the whole funnel all the same
        dataset = write_dataset(
            tmp_path / str(target),
            [user, other],
            num_trained=8,
            behaviors=NAMES,
            funnel=("click", "cart", "order"),
            target_behavior=target,
        )
        config = ContextConfig(max_history=9, requests_per_row=9)
        context, labels = next(TrainingBatches(dataset, config, rows=2).epoch(0))
        row = context.history.lengths.tolist().index(5)
        found = dict(
            zip(context.requests.cut[row].tolist(), labels.task_item[row].tolist(), strict=True)
        )
        # After cut c: next click or stronger, next cart or stronger, next order.
        expected = {1: [4, 4, 6], 2: [4, 4, 6], 3: [5, 6, 6], 4: [6, 6, 6], 5: [7, 0, 0]}
        assert found == expected
        # Dense supervision is of the next event whatever it is.
        assert labels.next_item[row].tolist() == [3, 4, 5, 6, 7]


def test_unknown_items_are_read_but_never_targets(tmp_path: Path) -> None:
    user = User(item=[2, UNKNOWN, 3, UNKNOWN], train_end=4)
    dataset = write_dataset(tmp_path, [user], num_trained=2)
    config = ContextConfig(max_history=9, requests_per_row=9)
    context, labels = next(TrainingBatches(dataset, config, rows=2).epoch(0))
    assert context.history.item.tolist() == [[2, UNKNOWN, 3]]
    assert labels.next_item.tolist() == [[0, 3, 0]]
    by_cut = dict(zip(context.requests.cut[0].tolist(), labels.task_item[0, :, 0], strict=True))
    assert {c: int(i) for c, i in by_cut.items()} == {1: 0, 2: 3, 3: 0}


@pytest.mark.parametrize("block_by", ["behavior", "session", "domain"])
def test_targets_and_cuts_move_along_with_boundary_tokens(tmp_path: Path, block_by: Any) -> None:
    users = [
        User(
            item=range(2, 12),
            train_end=10,
            behavior=[3, 4, 4, 3, 3, 4, 3, 3, 3, 4],
            domain=[2, 3, 3, 2, 2, 3, 2, 2, 2, 3],
            timestamp=[START + 9999 * b for b in (0, 1, 1, 2, 2, 3, 4, 4, 4, 5)],
        )
    ]
    dataset = write_dataset(
        tmp_path, users, num_trained=10, behaviors=NAMES, domains=("shop", "news")
    )
    config = ContextConfig(max_history=40, requests_per_row=20, block_by=block_by)
    context, labels = next(TrainingBatches(dataset, config).epoch(0))
    history, requests = context.history, context.requests
    assert history.item.tolist() == [[2, 0, 3, 4, 0, 5, 6, 0, 7, 0, 8, 9, 10]]
    assert history.block.tolist() == [[1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 5, 5]]
    assert labels.next_item.tolist() == [[3, 0, 4, 5, 0, 6, 7, 0, 8, 0, 9, 10, 11]]
    assert (labels.next_item[history.behavior == BOUNDARY] == 0).all()
    last_seen = history.item[0, requests.cut[0] - 1]
    assert torch.equal(last_seen + 1, labels.task_item[0, :, 0])


def evaluated(
    dataset: PreparedDataset, part: Any, **options: Any
) -> list[tuple[int, int, list[int], list[int]]]:
    """User, target, the items the request sees, the items counted as seen; in user order."""
    config = ContextConfig(max_history=options.pop("max_history", 10))
    rows = []
    options = {"batch_size": 2, **options}
    for batch in evaluation_batches(dataset, config, part=part, **options):
        history, cut = batch.context.history, batch.context.requests.cut
        assert cut.shape == (len(batch.target), 1)
        assert torch.equal(cut[:, 0], history.lengths)
        for b, n in enumerate(history.lengths.tolist()):
            read, seen = history.item[b, :n].tolist(), batch.seen[b]
            assert batch.history_length[b] == int((seen != 0).sum())
            rows.append(
                (int(batch.user_index[b]), int(batch.target[b]), read, seen[seen != 0].tolist())
            )
    return sorted(rows)


def evaluation_dataset(folder: Path, **fields_: Any) -> PreparedDataset:
    users = [
        User(item=[2, 3, 4, 5, 6, 7], behavior=[3, 3, 3, 4, 3, 5], train_end=2, valid_end=4),
        User(item=[8, 9], behavior=[3, 3], train_end=2),
        User(item=[3, 4, 5], behavior=[4, 6, 3], train_end=0, valid_end=1),
        User(item=[5, 6, 7], behavior=[3, 3, 4], train_end=1, valid_end=1),
    ]
    return write_dataset(
        folder, users, num_trained=8, behaviors=NAMES, buckets=(2, 1, 0, 1), **fields_
    )


@pytest.mark.parametrize(
    ("target", "validation", "test"),
    [
        ("first", [(0, 4), (2, 3)], [(0, 6), (2, 4), (3, 6)]),
        ("last", [(0, 5), (2, 3)], [(0, 7), (2, 5), (3, 7)]),
        ("all", [(0, 4), (0, 5), (2, 3)], [(0, 6), (0, 7), (2, 4), (2, 5), (3, 6), (3, 7)]),
    ],
)
def test_the_declared_target_of_a_part_is_asked(
    tmp_path: Path, target: Any, validation: list[Any], test: list[Any]
) -> None:
    dataset = evaluation_dataset(tmp_path, split=SplitSpec(target=target))
    assert [row[:2] for row in evaluated(dataset, "validation")] == validation
    assert [row[:2] for row in evaluated(dataset, "test")] == test


@pytest.mark.parametrize(
    ("funnel", "behavior", "test"),
    [
        (("click", "cart", "order"), "cart", [(0, 7), (3, 7)]),
        (("click", "cart", "order"), "order", [(0, 7)]),
        (("click", "cart", "order"), "click", [(0, 6), (2, 5), (3, 6)]),
        ((), "cart", [(3, 7)]),
        ((), "save", [(2, 4)]),
        ((), "never", []),
    ],
)
def test_only_events_of_the_target_behavior_or_a_stronger_one_are_asked(
    tmp_path: Path, funnel: Any, behavior: str, test: list[Any]
) -> None:
    dataset = evaluation_dataset(tmp_path, funnel=funnel, target_behavior=behavior)
    assert [row[:2] for row in evaluated(dataset, "test")] == test


def test_a_request_sees_everything_before_its_target_and_the_window_the_latest(
    tmp_path: Path,
) -> None:
    dataset = evaluation_dataset(tmp_path, split=SplitSpec(target="last"))
    rows = {row[0]: row for row in evaluated(dataset, "test", max_history=3)}
    assert rows[0] == (0, 7, [4, 5, 6], [2, 3, 4, 5, 6])
    assert rows[3] == (3, 7, [5, 6], [5, 6])
    first = {row[0]: row for row in evaluated(dataset, "validation")}
    assert first[2] == (2, 3, [], [])  # a user without history is asked too


def test_the_moment_of_an_evaluation_request_is_its_targets_time(tmp_path: Path) -> None:
    dataset = evaluation_dataset(tmp_path)
    for batch in evaluation_batches(dataset, ContextConfig(), part="test", batch_size=1):
        when = START + HOUR * batch.history_length.item()
        assert batch.context.requests.timestamp.tolist() == [[when]]


def test_leave_one_out_asks_each_user_for_one_event_a_part(toy: PreparedDataset) -> None:
    config = ContextConfig(max_history=20)
    for part, back in (("validation", 2), ("test", 1)):
        rows = [
            (int(u), int(t))
            for b in evaluation_batches(toy, config, part=part, batch_size=7)
            for u, t in zip(b.user_index, b.target, strict=True)
        ]
        histories = [
            bucket.events["item"].row(i).tolist()
            for bucket in toy.buckets
            for i in range(bucket.num_users)
        ]
        assert sorted(rows) == [(u, items[-back]) for u, items in enumerate(histories)]


def test_max_users_thins_evenly_and_always_the_same(toy: PreparedDataset) -> None:
    def ask(limit: int | None) -> list[int]:
        stream = evaluation_batches(
            toy, ContextConfig(), part="test", batch_size=7, max_users=limit
        )
        return sorted(int(u) for b in stream for u in b.user_index)

    assert ask(None) == ask(1000) == list(range(40))
    few = ask(8)
    assert few == ask(8)
    assert len(few) == 8
    assert sum(u < 25 for u in few) == 5  # the buckets hold 25 and 15


def test_blocks_leave_room_for_their_boundary_tokens(toy: PreparedDataset) -> None:
    config = ContextConfig(max_history=5, block_by="session", session_gap_s=60)
    for batch in evaluation_batches(toy, config, part="test", batch_size=7):
        assert batch.context.history.item.shape[1] <= 5


@pytest.mark.parametrize(
    "stream",
    [
        lambda d, c: evaluation_batches(d, c, part="validation", batch_size=2),
        lambda d, c: (b for h in d.buckets for b in history_batches(h, d.manifest, c)),
    ],
    ids=["evaluation", "history"],
)
def test_no_batch_is_empty(
    tmp_path: Path, stream: Callable[[PreparedDataset, ContextConfig], Any]
) -> None:
    dataset = evaluation_dataset(tmp_path)
    for batch in stream(dataset, ContextConfig()):
        assert len(flat(batch)[0]) > 0


def scored(dataset: PreparedDataset, **options: Any) -> dict[int, tuple[list[int], list[int], int]]:
    """Row of the first bucket → what its request sees, what counts as seen, its moment."""
    config = ContextConfig(max_history=options.pop("max_history", 10))
    found = {}
    stream = history_batches(dataset.buckets[0], dataset.manifest, config, batch_size=2, **options)
    for rows, context, seen in stream:
        for b, row in enumerate(rows.tolist()):
            n = int(context.history.lengths[b])
            assert context.requests.cut[b].tolist() == [n]
            found[row] = (
                context.history.item[b, :n].tolist(),
                seen[b][seen[b] != 0].tolist(),
                int(context.requests.timestamp[b]) - START,
            )
    return found


@pytest.fixture
def scoring(tmp_path: Path) -> PreparedDataset:
    users = [
        User(item=[2, 3, 4, 5], train_end=4),
        User(item=[6], train_end=1, timestamp=[START + 9 * HOUR]),
        User(item=[], train_end=0),
    ]
    return write_dataset(tmp_path, users, num_trained=5)


def test_scoring_asks_at_the_end_of_each_history(scoring: PreparedDataset) -> None:
    assert scored(scoring, max_history=3) == {
        0: ([3, 4, 5], [2, 3, 4, 5], 3 * HOUR),
        1: ([6], [6], 9 * HOUR),
        2: ([], [], -START),
    }
    assert list(scored(scoring, rows=torch.tensor([1]))) == [1]


def test_as_of_hides_events_at_or_after_it_and_is_the_moment(scoring: PreparedDataset) -> None:
    assert scored(scoring, as_of=START + 2 * HOUR) == {
        0: ([2, 3], [2, 3], 2 * HOUR),
        1: ([], [], 2 * HOUR),
        2: ([], [], 2 * HOUR),
    }
