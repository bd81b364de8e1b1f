"""Metrics of ranked lists as pure functions of ranks: one value a user first, means after.

The rank of a relevant item is 1 + the number of *other* recommendable items scored at least as high
(ties count against the item); ``inf`` stands for an item that cannot be recommended. A rank alone
is enough for every metric here, so that no list of recommendations is ever stored or sorted.

``ranks`` is (U,), one relevant item a user, or (U, R), up to R relevant items ranked in one list,
padded with NaN. With one relevant item recall and hit rate are the same number.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def recall_at_k(ranks: ArrayLike, k: int) -> Floats:
    """Share of a user's relevant items among the first ``k``.

    Args:
        ranks: Ranks of the relevant items, (U,) or (U, R) padded with NaN; 1 is the best.
        k: Length of the list, at least 1.

    Returns:
        (U,) float64 in 0…1; 0 for a user without relevant items.

    Raises:
        ValueError: If ``k`` or a rank is below 1, or ``ranks`` has more than two axes.

    Example:
        >>> recall_at_k([1, 3, np.inf], k=2).tolist()
        [1.0, 0.0, 0.0]
    """
    found = _checked(ranks, k)
    number = np.maximum((~np.isnan(found)).sum(axis=1), 1)
    share: Floats = (found <= k).sum(axis=1) / number
    return share


def hit_rate_at_k(ranks: ArrayLike, k: int) -> Floats:
    """Whether any relevant item is among the first ``k``.

    Args:
        ranks: Ranks of the relevant items, (U,) or (U, R) padded with NaN; 1 is the best.
        k: Length of the list, at least 1.

    Returns:
        (U,) float64, 0 or 1.

    Raises:
        ValueError: If ``k`` or a rank is below 1, or ``ranks`` has more than two axes.

    Example:
        >>> hit_rate_at_k([[1, 9], [7, 8]], k=5).tolist()
        [1.0, 0.0]
    """
    hit: Floats = np.asarray((_checked(ranks, k) <= k).any(axis=1), dtype=np.float64)
    return hit


def ndcg_at_k(ranks: ArrayLike, k: int) -> Floats:
    """Discounted gain, a hit at rank r counting 1 / log2(1 + r), over the best possible.

    Args:
        ranks: Ranks of the relevant items, (U,) or (U, R) padded with NaN; 1 is the best.
        k: Length of the list, at least 1.

    Returns:
        (U,) float64 in 0…1. The divisor is the gain of min(k, relevant items) hits at the top.

    Raises:
        ValueError: If ``k`` or a rank is below 1, or ``ranks`` has more than two axes.

    Example:
        >>> ndcg_at_k([1, 3], k=10).tolist()
        [1.0, 0.5]
    """
    found = _checked(ranks, k)
    gain = np.where(found <= k, 1 / np.log2(1 + np.where(found <= k, found, 1)), 0.0).sum(axis=1)
    best = np.cumsum(1 / np.log2(1 + np.arange(1, max(found.shape[1], 1) + 1)))
    number = np.clip((~np.isnan(found)).sum(axis=1), 1, k)
    divided: Floats = gain / best[number - 1]
    return divided


def mrr_at_k(ranks: ArrayLike, k: int) -> Floats:
    """One over the rank of the first relevant item; 0 where it is past ``k``.

    Args:
        ranks: Ranks of the relevant items, (U,) or (U, R) padded with NaN; 1 is the best.
        k: Length of the list, at least 1.

    Returns:
        (U,) float64 in 0…1.

    Raises:
        ValueError: If ``k`` or a rank is below 1, or ``ranks`` has more than two axes.

    Example:
        >>> mrr_at_k([2, 5], k=4).tolist()
        [0.5, 0.0]
    """
    found = _checked(ranks, k)
    first = np.where(np.isnan(found), np.inf, found).min(axis=1, initial=np.inf)
    return np.where(first <= k, 1 / first, 0.0)


def ranking_metrics(ranks: ArrayLike, k: Sequence[int]) -> dict[str, Floats]:
    """Every metric of this file at every ``k``, under the names the reports use.

    Args:
        ranks: Ranks of the relevant items, (U,) or (U, R) padded with NaN.
        k: Lengths of the list.

    Returns:
        ``recall@5`` … → (U,) float64. Where each user has one relevant item, ``hit_rate@k`` would
        repeat ``recall@k`` and is left out.

    Raises:
        ValueError: If a ``k`` or a rank is below 1, or ``ranks`` has more than two axes.
    """
    functions = {"recall": recall_at_k, "ndcg": ndcg_at_k, "mrr": mrr_at_k}
    if np.ndim(ranks) == 2:
        functions["hit_rate"] = hit_rate_at_k
    return {f"{name}@{n}": metric(ranks, n) for name, metric in functions.items() for n in k}


def _checked(ranks: ArrayLike, k: int) -> Floats:
    if k < 1:
        raise ValueError(f"k ({k}) must be at least 1.")
    found = np.asarray(ranks, dtype=np.float64)
    if found.ndim not in (1, 2):
        raise ValueError(f"ranks must be of shape (U,) or (U, R), not {found.shape}.")
    if found.size and np.nanmin(found, initial=np.inf) < 1:
        raise ValueError(f"ranks must be at least 1; the smallest is {np.nanmin(found):g}.")
    return found if found.ndim == 2 else found[:, None]
