"""The per-user table: what an evaluation found, before any mean is taken."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recsys.metrics.catalogue import coverage, gini
from recsys.metrics.ranking import ranking_metrics

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Key = tuple[str, str]
"""(scorer, head)."""


@dataclass(frozen=True, slots=True)
class ListStatistics:
    """Properties of the top-k lists of one head."""

    popularity: Floats
    """Mean natural log of 1 + training events of the recommended items, (R,)."""
    novelty: Floats
    """Mean self-information of the recommended items in bits, (R,)."""
    diversity: Floats
    """Share of pairs of a list with unlike coarse codes, (R,); NaN where unknown."""
    counts: Ints
    """How often each item is recommended, (N,)."""


@dataclass(frozen=True, slots=True)
class UserTable:
    """Ranks of R requests, ordered by user, under every scorer and head; and facts of each."""

    user_index: Ints
    """Row of the user in the data set, (R,); a user with several requests has several rows."""
    target: Ints
    """Internal id of the item asked for, (R,)."""
    history_length: Ints
    """Events before the request, (R,)."""
    history_popularity: Floats
    """Mean natural log of 1 + training events of the user's seen items, (R,); NaN without any."""
    target_seen: NDArray[np.bool_]
    """Whether the target is among the user's seen items, (R,)."""
    target_known: NDArray[np.bool_]
    """Whether the target is among the candidates at all, (R,)."""
    situation: dict[str, Ints] = field(default_factory=dict)
    """Codes of the request that slices may read, such as ``domain``, (R,)."""
    ranks: dict[Key, Floats] = field(default_factory=dict)
    """(R,) each; inf = cannot be recommended."""
    lists: dict[Key, ListStatistics] = field(default_factory=dict)
    answers: tuple[Key, ...] = ()
    """The head of each scorer that counts, in the order of the scorers."""
    k: tuple[int, ...] = (10,)
    list_k: int = 10
    """Length of the lists behind ``lists``."""
    candidates: Literal["trained", "all"] = "trained"
    num_candidates: int = 0
    filter_seen: bool = True

    @property
    def num_requests(self) -> int:
        """R."""
        return len(self.user_index)

    @property
    def num_users(self) -> int:
        """Distinct users."""
        return len(np.unique(self.user_index))

    def merge(self, other: "UserTable") -> "UserTable":
        """Put the scorers of two evaluations of the same requests into one table.

        Args:
            other: The other evaluation, with other scorers.

        Returns:
            A new table.

        Raises:
            ValueError: If the requests, the protocol or the sizes differ, or a scorer's name occurs
                in both.
        """
        same = np.array_equal(self.user_index, other.user_index) and np.array_equal(
            self.target, other.target
        )
        if not same:
            raise ValueError(
                f"The two tables hold different requests ({self.num_requests} and "
                f"{other.num_requests}): evaluate both on the same data, part and users."
            )
        for name in ("k", "list_k", "candidates", "num_candidates", "filter_seen"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"The two tables differ in {name}: {getattr(self, name)!r} and "
                    f"{getattr(other, name)!r}."
                )
        twice = {key[0] for key in self.ranks} & {key[0] for key in other.ranks}
        if twice:
            raise ValueError(f"Scorer names must be unique; both tables hold {sorted(twice)}.")
        return replace(
            self,
            ranks={**self.ranks, **other.ranks},
            lists={**self.lists, **other.lists},
            answers=self.answers + other.answers,
        )

    def metrics(
        self, key: Key, k: Sequence[int] | None = None, rows: NDArray[np.bool_] | None = None
    ) -> dict[str, Floats]:
        """Ranking metrics of one head, one value a user.

        Args:
            key: Scorer and head.
            k: List lengths; None = the table's.
            rows: Which requests count, (R,); None = all.

        Returns:
            Name such as ``ndcg@10`` → (users,).

        Raises:
            ValueError: If the table has no such head.
        """
        if key not in self.ranks:
            raise ValueError(f"{key!r} is not in the table, which holds {list(self.ranks)}.")
        ranks = self.ranks[key] if rows is None else self.ranks[key][rows]
        found = ranking_metrics(ranks, self.k if k is None else k)
        users = self.user_index if rows is None else self.user_index[rows]
        return {name: per_user(values, users) for name, values in found.items()}

    def list_metrics(self, key: Key) -> dict[str, float]:
        """Means over requests of what the lists of one head look like.

        Args:
            key: Scorer and head.

        Returns:
            ``coverage@k``, ``gini@k``, ``popularity@k``, ``popularity_bias@k``, ``novelty@k`` and
            ``diversity@k``; NaN where nothing is known. Empty if no lists were made.
        """
        if key not in self.lists:
            return {}
        lists, k = self.lists[key], self.list_k
        return {
            f"coverage@{k}": coverage(lists.counts, self.num_candidates),
            f"gini@{k}": gini(lists.counts, self.num_candidates),
            f"popularity@{k}": _mean(lists.popularity),
            f"popularity_bias@{k}": _mean(lists.popularity - self.history_popularity),
            f"novelty@{k}": _mean(lists.novelty),
            f"diversity@{k}": _mean(lists.diversity),
        }

    def means(self) -> dict[str, float]:
        """Mean of every ranking metric, ``scorer/head/metric`` → value, for a log line."""
        return {
            f"{scorer}/{head}/{name}": float(values.mean()) if len(values) else float("nan")
            for (scorer, head) in self.ranks
            for name, values in self.metrics((scorer, head)).items()
        }

    def heads(self) -> Iterator[tuple[Key, bool]]:
        """Every (scorer, head), and whether it is the scorer's answer."""
        for key in self.ranks:
            yield key, key in self.answers


def per_user(values: Floats, users: Ints) -> Floats:
    """Average the requests of each user.

    Args:
        values: One value a request, (R,).
        users: The user of each request, (R,).

    Returns:
        One value a user, by user number.

    Example:
        >>> per_user(np.array([1.0, 0.0, 1.0]), np.array([4, 4, 7])).tolist()
        [0.5, 1.0]
    """
    if np.all(users[1:] > users[:-1]):
        return values
    _, inverse, count = np.unique(users, return_inverse=True, return_counts=True)
    mean: Floats = np.bincount(inverse, weights=values) / count
    return mean


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
