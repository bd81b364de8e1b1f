import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.split import (
    check_split,
    cuts_by_time,
    cuts_leave_one_out,
    order_statistics,
    split_times,
)
from recsys.schema import ColumnSpec, SplitSpec


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.integers(-(2**40), 2**40), max_size=6), min_size=1, max_size=4).filter(
        lambda pieces: sum(map(len, pieces)) > 0
    ),
    st.data(),
)
def test_order_statistics_equal_those_of_a_sort(
    pieces: list[list[int]], data: st.DataObject
) -> None:
    flat = sorted(x for piece in pieces for x in piece)
    ranks = data.draw(st.lists(st.integers(0, len(flat) - 1), min_size=1, max_size=3))
    arrays = [np.array(p, np.int64) for p in pieces]
    assert order_statistics(lambda: arrays, ranks) == [flat[r] for r in ranks]


def test_times_at_fractions_by_hand() -> None:
    times = np.arange(100, 110)
    split = SplitSpec(validation_fraction=0.2, test_fraction=0.2)
    assert split_times(split, lambda: [times], 10) == (106, 108)


def test_given_times_are_used_as_they_are() -> None:
    split = SplitSpec(validation_time=5, test_time=9)
    assert split_times(split, lambda: [], 0) == (5, 9)


def test_times_too_coarse_for_the_fractions_are_refused() -> None:
    with pytest.raises(ValueError, match="both begin at 7"):
        split_times(SplitSpec(), lambda: [np.full(50, 7)], 50)


def test_cuts_by_time_by_hand() -> None:
    offsets = np.array([0, 4, 5, 7])
    time = np.array([1, 5, 5, 9, 10, 2, 3])
    train_end, valid_end = cuts_by_time(offsets, time, 5, 9)
    assert train_end.tolist() == [1, 0, 2]
    assert valid_end.tolist() == [3, 0, 2]


def test_leave_one_out_keeps_short_users_for_training() -> None:
    train_end, valid_end = cuts_leave_one_out(np.array([0, 3, 5, 6, 10]))
    assert train_end.tolist() == [1, 2, 1, 2]
    assert valid_end.tolist() == [2, 2, 1, 3]


def test_leave_one_out_with_a_target_cuts_at_the_last_two_targets() -> None:
    offsets = np.array([0, 6, 9, 12])
    order = np.array([0, 1, 0, 1, 0, 0, 0, 0, 1, 1, 1, 0], bool)
    train_end, valid_end = cuts_leave_one_out(offsets, order)
    assert train_end.tolist() == [1, 3, 3]  # user 1: one target; user 2: nothing before the first
    assert valid_end.tolist() == [3, 3, 3]


def test_leave_one_out_warns_of_its_leak(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_split(SplitSpec(kind="leave_one_out"), ColumnSpec(timestamp=None, order="n"))
    assert "Leave-one-out leaks" in caplog.text


@pytest.mark.parametrize(
    ("split", "columns", "message"),
    [
        (SplitSpec(), ColumnSpec(order="seq"), r"columns.order \('seq'\)"),
        (SplitSpec(), ColumnSpec(timestamp=None, order="seq"), r"columns.order \('seq'\)"),
        (SplitSpec(), ColumnSpec(timestamp=None), "are both None"),
        (SplitSpec(validation_time=9, test_time=9), ColumnSpec(), r"test_time \(9\)"),
        (SplitSpec(validation_time=9, test_time=3), ColumnSpec(), r"test_time \(3\)"),
        (SplitSpec(validation_time=9), ColumnSpec(), "given together"),
        (SplitSpec(test_fraction=0.0), ColumnSpec(), r"test_fraction \(0.0\)"),
        (SplitSpec(test_fraction=0.6, validation_fraction=0.4), ColumnSpec(), "something to train"),
    ],
)
def test_a_split_that_leaks_or_cannot_be_made_is_refused(
    split: SplitSpec, columns: ColumnSpec, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_split(split, columns)
