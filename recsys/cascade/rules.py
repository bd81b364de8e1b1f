"""Filters and policies from external ids and names, as those who call the cascade know them."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.cascade.frames import Item, ItemNames
from recsys.data.dataset import Catalogue
from recsys.ranking.policy import DROPPED, Available, Diversity, Policy, Quota, Rule
from recsys.schema import Manifest
from recsys.types import FIRST_ID


def allowed_items(
    names: ItemNames,
    allow: Sequence[Item] | None,
    deny: Sequence[Item] | None,
    notes: dict[str, int],
) -> Tensor | None:
    """Turn lists of external ids into a mask.

    Args:
        names: Of the items.
        allow: The only items to recommend; None for all.
        deny: Items never to recommend.
        notes: Gets the numbers of unknown ids.

    Returns:
        Items that may be recommended, (N,) bool; None for all.

    Raises:
        ValueError: If the model knows none of the allowed items.
    """
    if allow is None and deny is None:
        return None
    allowed = torch.full((len(names.names),), allow is None)
    if allow is not None:
        allowed = _known(names, "allow", allow, notes)
    if deny is not None:
        known, unknown = names.internal(deny)
        allowed[known] = False
        notes["unknown_items_in_deny"] = len(unknown)
    return allowed


def make_policy(
    names: ItemNames,
    catalogue: Catalogue,
    manifest: Manifest,
    vectors: Tensor,
    notes: dict[str, int],
    *,
    available: Sequence[Item] | None = None,
    diversity: float = 0.0,
    max_per_category: int | None = None,
    domain_places: Mapping[str, tuple[int, int | None]] | None = None,
) -> Policy:
    """Make the usual rules in their usual order: availability, variety, then hard limits.

    Args:
        names: Of the items.
        catalogue: The items; their coarse codes are their categories.
        manifest: Names the domains.
        vectors: Of the items, (N, D).
        notes: Gets the number of unknown ids.
        available: External ids of the items that can be had; None for all.
        diversity: Weight of unlikeness, 0 … 1.
        max_per_category: Items of a category among the first k; None for any number.
        domain_places: Domain → least and most items among the first k; most None for any number.

    Returns:
        The policy.

    Raises:
        ValueError: If no available item is known, a category or domain is asked for where there is
            none, or a number is out of its range.
    """
    rules: list[Rule] = []
    if available is not None:
        rules.append(Available(_known(names, "available", available, notes)))
    if diversity:
        rules.append(Diversity(F.normalize(vectors.cpu(), dim=1), diversity))
    if max_per_category is not None:
        if int(catalogue.coarse.max()) < FIRST_ID:
            raise ValueError(
                f"max_per_category ({max_per_category}) needs categories, and the data set was "
                "prepared without coarse codes."
            )
        if max_per_category < 1:
            raise ValueError(f"max_per_category ({max_per_category}) must be at least 1.")
        rules.append(Quota.at_most(catalogue.coarse, max_per_category, name="category"))
    if domain_places:
        rules.append(_domain_quota(names, manifest, domain_places))
    return Policy(tuple(rules))


def _known(names: ItemNames, argument: str, items: Sequence[Item], notes: dict[str, int]) -> Tensor:
    """Mask of items that the model knows, (N,) bool."""
    known, unknown = names.internal(items)
    if not len(known):
        raise ValueError(
            f"{argument} ({len(items)} items, such as {list(items[:3])}) must hold at least one "
            "item that the model knows."
        )
    notes[f"unknown_items_in_{argument}"] = len(unknown)
    mask = torch.zeros(len(names.names), dtype=torch.bool)
    mask[known] = True
    return mask


def _domain_quota(
    names: ItemNames, manifest: Manifest, places: Mapping[str, tuple[int, int | None]]
) -> Quota:
    code = {name: i + FIRST_ID for i, name in enumerate(manifest.domains)}
    unknown = sorted(set(places) - set(code))
    if unknown or names.domain is None:
        raise ValueError(
            f"domain_places names the domains {unknown or sorted(places)}; the model knows "
            f"{list(manifest.domains)}."
        )
    known = pa.array(manifest.domains, pa.string())
    found = pc.fill_null(pc.index_in(names.domain, value_set=known), -FIRST_ID)
    group = torch.tensor(found.to_numpy(zero_copy_only=False)).long() + FIRST_ID
    size = FIRST_ID + len(code)
    least, most = torch.zeros(size, dtype=torch.long), torch.full((size,), DROPPED)
    for name, (low, high) in places.items():
        least[code[name]] = low
        most[code[name]] = DROPPED if high is None else high
    return Quota(group, most, least, "domain")
