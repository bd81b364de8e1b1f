"""Rules over ranked lists: what is available, quotas by group, variety; each says what it did.

A rule sees lists of internal ids, best first, and gives every entry a new place. It sees no scores,
because those of several sources cannot be compared. Each rule gets what the one before has left, so
hard limits belong after whatever re-orders.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.types import FIRST_ID

DROPPED = 2**31
"""The place of an entry that leaves the list."""


class Rule(Protocol):
    """One rule of a policy."""

    @property
    def name(self) -> str:
        """What its effect is told under."""
        ...

    def places(self, ids: Tensor, k: int) -> Tensor:
        """Give every entry of some lists its new place.

        Args:
            ids: Internal ids, best first, (U, n) int64; -1 where there is none.
            k: Entries of each list that will be shown.

        Returns:
            (U, n) int64: lower places come first, equal ones keep their order, and ``DROPPED``
            takes an entry out.
        """
        ...


@dataclass(frozen=True)
class Available:
    """Takes out what cannot be had."""

    items: Tensor
    """Items that can be had, (N,) bool."""
    name: str = "available"

    def places(self, ids: Tensor, k: int) -> Tensor:
        """See ``Rule``."""
        return _order(ids).masked_fill(~self.items[ids.clamp(min=0)], DROPPED)


@dataclass(frozen=True)
class Quota:
    """At most and at least so many items of each group among the first k.

    Items above ``most`` of their group leave the list. ``least`` is met as far as the list holds
    items of the group: its best ones take the last of the k places. Items of no group (codes below
    ``FIRST_ID``) are free.

    Raises:
        ValueError: If a number is negative, or more is guaranteed than allowed.
    """

    group: Tensor
    """Code of each item's group, (N,) int64."""
    most: Tensor
    """By code, (codes,) int64."""
    least: Tensor
    """By code, (codes,) int64."""
    name: str = "quota"

    def __post_init__(self) -> None:
        """Check the numbers."""
        wrong = ((self.least < 0) | (self.least > self.most)).nonzero().flatten().tolist()
        if wrong:
            least, most = int(self.least[wrong[0]]), int(self.most[wrong[0]])
            raise ValueError(
                f"least ({least}) of group {wrong[0]} must be at least 0 and no more than most "
                f"({most})."
            )

    @classmethod
    def at_most(cls, group: Tensor, most: int, *, name: str = "quota") -> "Quota":
        """Allow the same number of items of every group.

        Args:
            group: Code of each item's group, (N,) int64.
            most: Items of a group among the first k, at most.
            name: What the rule's effect is told under.

        Returns:
            The rule.
        """
        codes = int(group.max()) + 1
        return cls(group, torch.full((codes,), most), torch.zeros(codes, dtype=torch.long), name)

    def places(self, ids: Tensor, k: int) -> Tensor:
        """See ``Rule``.

        Raises:
            ValueError: If more than k places are guaranteed.
        """
        if int(self.least.sum()) > k:
            raise ValueError(
                f"least of {self.name} guarantees {int(self.least.sum())} places, more than k "
                f"({k})."
            )
        group = torch.where(ids < 0, 0, self.group[ids.clamp(min=0)])
        before, order = earlier_of_group(group), _order(ids)
        dropped = (group >= FIRST_ID) & (before >= self.most[group])
        reserved = (group >= FIRST_ID) & (before < self.least[group])
        behind = order + ids.shape[1]
        chosen = torch.where(reserved, order, behind).masked_fill(dropped, DROPPED)
        shown = chosen.argsort(dim=1, stable=True).argsort(dim=1) < k
        return torch.where(shown, order, behind).masked_fill(dropped, DROPPED)


@dataclass(frozen=True)
class Diversity:
    """Fills the first k places one by one, each with the best item that is unlike those above it.

    An item gives up places for its likeness to the nearest one above: k · weight / (1 - weight) of
    them where it is all alike.

    Raises:
        ValueError: If ``weight`` is not in 0 … 1.

    Source:
        Carbonell and Goldstein, "The use of MMR", SIGIR 1998. Relevance by place is ours.
    """

    items: Tensor
    """Vectors (N, D) float32, alike by their cosine, or codes (N,) int64, alike where equal."""
    weight: float = 0.3
    """0 changes nothing, 1 forgets the order."""
    name: str = "diversity"

    def __post_init__(self) -> None:
        """Check the weight."""
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight ({self.weight}) must be in 0 … 1.")

    def places(self, ids: Tensor, k: int) -> Tensor:
        """See ``Rule``."""
        order, rows = _order(ids), torch.arange(len(ids))
        own = self.items[ids.clamp(min=0)]
        own = F.normalize(own, dim=-1) if own.is_floating_point() else own
        value = (1 - self.weight) * -order / k
        value = value.masked_fill(ids < 0, -torch.inf)
        nearest: Tensor | None = None
        places = order + k
        for place in range(min(k, ids.shape[1])):
            gain = value if nearest is None else value - self.weight * nearest
            best = gain.argmax(dim=1)
            places[rows, best] = place
            value[rows, best] = -torch.inf
            alike = _alike(own, own[rows, best])
            nearest = alike if nearest is None else torch.maximum(nearest, alike)
        return places


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules in the order they are applied."""

    rules: tuple[Rule, ...] = ()

    def apply(self, ids: Tensor, k: int) -> tuple[Tensor, Counter[str]]:
        """Put lists in the order the rules want.

        Args:
            ids: Internal ids, best first, (U, n) int64; -1 where there is none, only at the end.
            k: Entries of each list that will be shown.

        Returns:
            Which entry comes at each place, (U, n) int64, -1 where none is left; and the effect of
            each rule: ``<rule>.users`` whose first k changed, and ``<rule>.items`` that left the
            first k, over all users.
        """
        order = _order(ids).masked_fill(ids < 0, -1)
        effects: Counter[str] = Counter()
        for rule in self.rules:
            left = taken(ids, order)
            places = rule.places(left, k).masked_fill(left < 0, DROPPED)
            sorted_places, move = places.sort(dim=1, stable=True)
            changed = order.gather(1, move).masked_fill(sorted_places >= DROPPED, -1)
            effects.update(_effect(rule.name, order[:, :k], changed[:, :k], ids.shape[1]))
            order = changed
        return order, effects


def taken(values: Tensor, order: Tensor) -> Tensor:
    """Entries in another order.

    Args:
        values: (U, n), of any kind.
        order: What ``Policy.apply`` returned, (U, m).

    Returns:
        (U, m): -1 (or NaN, of fractions) where ``order`` is -1.
    """
    none = torch.nan if values.is_floating_point() else -1
    return values.gather(1, order.clamp(min=0)).masked_fill(order < 0, none)


def earlier_of_group(group: Tensor) -> Tensor:
    """How many entries before each one are of its group.

    Args:
        group: Codes, (U, n) int64.

    Returns:
        (U, n) int64.

    Example:
        >>> earlier_of_group(torch.tensor([[5, 7, 5, 5, 7]]))
        tensor([[0, 0, 1, 2, 1]])
    """
    ordered, at = group.sort(dim=1, stable=True)
    place = _order(group)
    starts = torch.ones_like(group, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = torch.where(starts, place, 0).cummax(dim=1).values
    return torch.empty_like(group).scatter_(1, at, place - first)


def _order(ids: Tensor) -> Tensor:
    """Places 0 … n - 1 of every list, (U, n) int64, its own memory."""
    return torch.arange(ids.shape[1]).repeat(len(ids), 1)


def _alike(items: Tensor, one: Tensor) -> Tensor:
    """Likeness of (U, n) entries to one of each list: cosines of unit vectors, or equal codes."""
    if items.is_floating_point():
        return torch.einsum("und,ud->un", items, one)
    return ((items == one[:, None]) & (items >= FIRST_ID)).float()


def _effect(name: str, before: Tensor, after: Tensor, size: int) -> dict[str, int]:
    """What happened to the entries shown."""
    held = torch.zeros(2, len(before), size + 1, dtype=torch.bool)
    for place, shown in enumerate((before, after)):
        held[place].scatter_(1, torch.where(shown < 0, size, shown), True)
    left = (held[0] & ~held[1])[:, :size]
    users = (before != after).any(dim=1)
    return {f"{name}.users": int(users.sum()), f"{name}.items": int(left.sum())}
