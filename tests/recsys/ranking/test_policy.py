import pytest
import torch
from torch import Tensor

from recsys.ranking.policy import (
    DROPPED,
    Available,
    Diversity,
    Policy,
    Quota,
    earlier_of_group,
    taken,
)

# Items 2 … 9; even ids are of group 2, odd ones of group 3, item 9 of no group.
GROUP = torch.tensor([0, 0, 2, 3, 2, 3, 2, 3, 2, 1])
IDS = torch.tensor([[2, 4, 6, 3, 5, 9], [3, 2, 9, 5, 4, -1]])


def lists_of(rule: object, k: int) -> tuple[list[list[int]], dict[str, int]]:
    order, effects = Policy((rule,)).apply(IDS, k)  # type: ignore[arg-type]
    return taken(IDS, order).tolist(), dict(effects)


def some(*pairs: tuple[int, int], default: int = 0) -> Tensor:
    """A number a group, (4,)."""
    found = torch.full((4,), default)
    for code, number in pairs:
        found[code] = number
    return found


def test_a_policy_without_rules_changes_nothing() -> None:
    order, effects = Policy().apply(IDS, 3)
    assert order.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, -1]]
    assert not effects


def test_what_is_not_available_leaves_the_list_and_the_next_ones_move_up() -> None:
    available = torch.ones(10, dtype=torch.bool)
    available[[4, 3]] = False
    found, effects = lists_of(Available(available), 2)
    assert found == [[2, 6, 5, 9, -1, -1], [2, 9, 5, 4 - 5, -1, -1]]
    # Item 4 left the first user's two places, item 3 the second's.
    assert effects == {"available.users": 2, "available.items": 2}


def test_at_most_two_of_a_group_and_items_of_no_group_are_free() -> None:
    found, effects = lists_of(Quota.at_most(GROUP, 1, name="category"), 3)
    assert found == [[2, 3, 9, -1, -1, -1], [3, 2, 9, -1, -1, -1]]
    assert effects == {"category.users": 1, "category.items": 2}


def test_guaranteed_places_go_to_the_best_of_the_group_in_their_order() -> None:
    rule = Quota(GROUP, some(default=DROPPED), some((3, 2)), "domain")
    found, effects = lists_of(rule, 3)
    assert found == [[2, 3, 5, 4, 6, 9], [3, 2, 5, 9, 4, -1]]
    assert effects == {"domain.users": 2, "domain.items": 3}
    assert lists_of(rule, 5)[0][0] == [2, 4, 6, 3, 5, 9]  # they are there already


def test_most_and_least_hold_together() -> None:
    rule = Quota(GROUP, some((2, 1), default=DROPPED), some((3, 1)))
    assert lists_of(rule, 2)[0] == [[2, 3, 5, 9, -1, -1], [3, 2, 9, 5, -1, -1]]


def test_impossible_quotas_are_named() -> None:
    with pytest.raises(ValueError, match=r"least \(2\) of group 3 .* most \(1\)"):
        Quota(GROUP, some((3, 1)), some((3, 2)))
    rule = Quota(GROUP, some(default=9), some((2, 2), (3, 2)), "domain")
    with pytest.raises(ValueError, match=r"least of domain guarantees 4 places, more than k \(3\)"):
        rule.places(IDS, 3)


def test_variety_by_codes_alternates_groups_as_far_as_the_weight_allows() -> None:
    # An item like one above falls back by k · 0.3 / 0.7 = 1.3 places: 3 overtakes 6 and not 4.
    assert lists_of(Diversity(GROUP, 0.3), 3)[0][0] == [2, 4, 3, 6, 5, 9]
    found, effects = lists_of(Diversity(GROUP, 0.6), 3)
    assert found[0] == [2, 3, 9, 4, 6, 5]
    assert found[1][:3] == [3, 2, 9]
    assert effects == {"diversity.users": 1, "diversity.items": 2}
    assert lists_of(Diversity(GROUP, 0.0), 3)[0] == IDS.tolist()


def mmr(ids: list[int], vectors: Tensor, weight: float, k: int) -> list[int]:
    """Maximal marginal relevance, one item at a time."""
    left = dict(enumerate(ids))
    chosen: list[int] = []
    while left and len(chosen) < k:
        gain = {}
        for place, item in left.items():
            cosines = [float(torch.cosine_similarity(vectors[item], vectors[c], 0)) for c in chosen]
            gain[place] = (1 - weight) * -place / k - weight * max(cosines, default=0)
        best = max(gain, key=lambda place: (gain[place], -place))
        chosen.append(left.pop(best))
    return chosen + list(left.values())


def test_variety_by_vectors_equals_the_loop() -> None:
    vectors = torch.randn(30, 4)
    ids = torch.stack([torch.randperm(28)[:12] + 2 for _ in range(5)])
    order, _ = Policy((Diversity(vectors, 0.4),)).apply(ids, 6)
    expected = [mmr(row, vectors, 0.4, 6) for row in ids.tolist()]
    assert taken(ids, order).tolist() == expected


def test_rules_are_applied_in_their_order_and_never_bring_an_item_back() -> None:
    limit, variety = Quota.at_most(GROUP, 1), Diversity(GROUP, 0.9)
    order, effects = Policy((limit, variety)).apply(IDS, 2)
    assert taken(IDS, order).tolist()[0] == [2, 3, 9, -1, -1, -1]
    assert set(effects) == {f"{r}.{n}" for r in ("quota", "diversity") for n in ("users", "items")}
    empty = torch.full((2, 3), -1)
    assert taken(empty, Policy((variety, limit)).apply(empty, 2)[0]).tolist() == empty.tolist()


def test_a_weight_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"weight \(1.5\) must be in 0 … 1"):
        Diversity(GROUP, 1.5)


def test_taken_fills_places_without_an_entry() -> None:
    order = torch.tensor([[1, -1]])
    assert taken(torch.tensor([[0.5, 0.25]]), order)[0].isnan().tolist() == [False, True]
    assert earlier_of_group(torch.zeros(0, 3, dtype=torch.long)).shape == (0, 3)
