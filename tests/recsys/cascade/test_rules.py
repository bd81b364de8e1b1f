from typing import Any

import pyarrow as pa
import pytest
import torch
from line_world import VECTORS, catalogue_of

from recsys.cascade.frames import ItemNames
from recsys.cascade.rules import allowed_items, make_policy
from recsys.data.dataset import Catalogue
from recsys.ranking.policy import Policy, Quota
from recsys.schema import Manifest

KEYS = ["food\u241fa", "food\u241fb", "books\u241fa", "music\u241fc"]


def keyed() -> Catalogue:
    zeros = torch.zeros(6, dtype=torch.long)
    return Catalogue(pa.array(["", "", *KEYS]), zeros, zeros, 4, (), {}, {})


def policy_of(catalogue: Catalogue, *, with_domain: bool = False, **rules: Any) -> Policy:
    names = ItemNames(catalogue, with_domain=with_domain)
    manifest = Manifest(domains=("food", "books", "music") if with_domain else ())
    return make_policy(names, catalogue, manifest, VECTORS, {}, **rules)


def test_lists_of_external_ids_become_a_mask_and_unknown_ones_are_counted() -> None:
    names, notes = ItemNames(catalogue_of()), {}
    allowed = allowed_items(names, ["a", "b", "x"], ["b", "y", "z"], notes)
    assert allowed is not None
    assert allowed.nonzero().flatten().tolist() == [2]
    assert notes == {"unknown_items_in_allow": 1, "unknown_items_in_deny": 2}
    assert allowed_items(names, None, None, {}) is None
    denied = allowed_items(names, None, ["a"], {})
    assert denied is not None
    assert denied[2:].tolist() == [False, True, True, True, True]
    with pytest.raises(ValueError, match=r"allow \(1 items, such as \['x'\]\)"):
        allowed_items(names, ["x"], None, {})


def test_items_of_a_domain_are_known_by_both_parts_of_their_key() -> None:
    names = ItemNames(keyed(), with_domain=True)
    allowed = allowed_items(names, [("food", "a"), ("books", "a")], None, {})
    assert allowed is not None
    assert allowed.nonzero().flatten().tolist() == [2, 4]


def test_domains_get_the_places_they_are_promised() -> None:
    places = {"books": (1, None), "food": (0, 1)}
    policy = policy_of(keyed(), with_domain=True, domain_places=places)
    (rule,) = policy.rules
    assert isinstance(rule, Quota)
    assert rule.group.tolist() == [0, 0, 2, 2, 3, 4]
    order, effects = policy.apply(torch.tensor([[2, 3, 5, 4]]), 2)
    assert order.tolist() == [[0, 3, 2, -1]]  # food, then books, which takes the place of music
    assert effects == {"domain.users": 1, "domain.items": 1}


def test_no_rules_asked_for_are_no_rules() -> None:
    assert policy_of(catalogue_of()).rules == ()


def test_rules_that_cannot_be_are_named() -> None:
    with pytest.raises(ValueError, match=r"available \(1 items, such as \['x'\]\)"):
        policy_of(catalogue_of(), available=["x"])
    with pytest.raises(ValueError, match=r"max_per_category \(0\) must be at least 1"):
        policy_of(catalogue_of(), max_per_category=0)
    with pytest.raises(ValueError, match=r"max_per_category \(2\) needs categories"):
        policy_of(keyed(), max_per_category=2)
    with pytest.raises(
        ValueError, match=r"names the domains \['games'\]; the model knows \['food'"
    ):
        policy_of(keyed(), with_domain=True, domain_places={"games": (0, 1), "food": (0, 1)})
    with pytest.raises(ValueError, match=r"names the domains \['food'\]; the model knows \[\]"):
        policy_of(catalogue_of(), domain_places={"food": (0, 1)})
