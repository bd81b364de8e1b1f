import numpy as np
import pyarrow as pa
import torch

from recsys.cascade.lists import POPULAR, RankedLists, arrange, join

LISTS = RankedLists.of(
    torch.tensor([[7, 8], [9, -1]]), torch.tensor([[0.7, 0.6], [0.9, -torch.inf]])
)


def popular() -> RankedLists:
    lists = RankedLists.empty(1, 2)
    lists.ids[:], lists.source[:] = torch.tensor([3, 4]), POPULAR
    return lists


def test_arrange_fills_unknown_users_with_the_fallback() -> None:
    found = arrange(LISTS, pa.array([1, None, 0]), popular())
    assert found.ids.tolist() == [[9, -1], [3, 4], [7, 8]]
    np.testing.assert_allclose(found.scores[[0, 2], 0], [0.9, 0.7])
    assert found.is_popular.tolist() == [False, True, False]


def test_entries_move_together_and_a_place_without_an_entry_is_empty() -> None:
    found = LISTS.ordered(torch.tensor([[1, 0, -1], [0, -1, -1]]))
    assert found.ids.tolist() == [[8, 7, -1], [9, -1, -1]]
    assert found.retrieval[0, :2].tolist() == found.scores[0, :2].tolist()
    assert found.scores[1, 1] == -torch.inf
    assert found.probabilities.shape == (2, 3, 0)


def test_a_popular_list_that_loses_everything_is_still_popular() -> None:
    assert popular().ordered(torch.full((1, 2), -1)).is_popular.tolist() == [True]


def test_lists_are_joined_and_cut() -> None:
    whole = join([LISTS, popular(), popular().rows(torch.arange(0))])
    assert whole.first(1).ids[:, 0].tolist() == [7, 9, 3]
    assert whole.is_popular.tolist() == [False, False, True]


def test_lists_of_some_users_are_written_in_place() -> None:
    lists = join([LISTS, LISTS])
    lists.put(torch.tensor([2]), popular())
    assert lists.ids[:, 0].tolist() == [7, 9, 3, 9]
