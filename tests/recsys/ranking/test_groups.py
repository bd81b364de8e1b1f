import pytest
import torch
from torch import Tensor

from recsys.ranking.groups import group_candidates, ungroup

KEY = torch.tensor([11, 12])
IDS = torch.tensor([[5, 6, 7, 8, 9], [7, 0, 5, 0, 0]])


def as_sets(item: Tensor, row: int) -> set[frozenset[int]]:
    return {frozenset(group.tolist()) - {0} for group in item[row, 0]} - {frozenset()}


def test_every_candidate_is_in_one_place_and_comes_back_from_it() -> None:
    found, where = group_candidates(IDS, 2, salt=0, request_key=KEY)
    assert found.item.shape == (2, 1, 3, 2)
    assert found.position is None
    assert sorted(found.item[0].flatten().tolist()) == [0, 5, 6, 7, 8, 9]
    assert sorted(found.item[1].flatten().tolist()) == [0, 0, 0, 0, 5, 7]
    assert torch.equal(ungroup(found.item, where)[IDS != 0], IDS[IDS != 0])
    both = torch.stack((found.item, -found.item), dim=-1)
    assert torch.equal(ungroup(both, where)[..., 1][IDS != 0], -IDS[IDS != 0])


def test_sizes_of_groups_are_at_most_one_apart() -> None:
    ids = torch.arange(2, 15)[None]  # 13 candidates, groups of 12: 7 and 6, not 12 and 1
    found, _ = group_candidates(ids, 12, salt=0, request_key=KEY[:1])
    assert sorted((found.item[0, 0] != 0).sum(dim=1).tolist()) == [6, 7]


def test_groups_do_not_depend_on_order_padding_or_other_requests() -> None:
    together, _ = group_candidates(IDS, 2, salt=3, request_key=KEY)
    turned, _ = group_candidates(IDS.flip(1), 2, salt=3, request_key=KEY)
    assert torch.equal(together.item, turned.item)
    alone, _ = group_candidates(torch.tensor([[5, 7]]), 2, salt=3, request_key=KEY[1:])
    assert as_sets(alone.item, 0) == as_sets(together.item, 1)


def test_another_salt_or_request_gives_other_groups() -> None:
    ids = torch.arange(2, 42)[None]

    def groups(salt: int, key: int) -> set[frozenset[int]]:
        found, _ = group_candidates(ids, 4, salt=salt, request_key=torch.tensor([key]))
        return as_sets(found.item, 0)

    assert groups(0, 1) == groups(0, 1)
    assert groups(0, 1) != groups(1, 1)
    assert groups(0, 1) != groups(0, 2)


def test_items_meet_as_often_as_chance_has_it() -> None:
    """Neighbouring ids share a group of 4 among 8 in 3 of 7 requests."""
    ids = torch.arange(2, 10).repeat(4000, 1)
    _, where = group_candidates(ids, 4, salt=0, request_key=torch.arange(4000))
    together = (where[:, 0] // 4 == where[:, 1] // 4).double().mean()
    assert abs(together - 3 / 7) < 0.03


def test_requests_without_candidates_are_all_padding() -> None:
    found, where = group_candidates(torch.zeros(2, 0, dtype=torch.long), 3, salt=0, request_key=KEY)
    assert found.item.tolist() == [[[[0, 0, 0]]]] * 2
    assert where.shape == (2, 0)
    none, _ = group_candidates(IDS[:0], 3, salt=0, request_key=KEY[:0])
    assert none.item.shape == (0, 1, 1, 3)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"group_size \(0\) must be at least 1"):
        group_candidates(IDS, 0, salt=0, request_key=KEY)
    with pytest.raises(ValueError, match=r"request_key \(1,\) must be \(B,\)"):
        group_candidates(IDS, 2, salt=0, request_key=KEY[:1])
