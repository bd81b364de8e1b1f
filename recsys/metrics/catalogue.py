"""What a set of recommendation lists does to the catalogue: coverage, popularity, novelty, variety.

Lists are (U, k) int64 arrays of internal item ids, best first, padded with -1 where fewer than k
items could be recommended. Every figure that can be is one value a user first.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def recommended_counts(lists: Ints, num_items: int) -> Ints:
    """How often each item is recommended.

    Args:
        lists: Recommended items, (U, k), -1 = none.
        num_items: N, rows of the catalogue.

    Returns:
        (N,) int64. Counts of several batches add up.
    """
    return np.bincount(lists[lists >= 0].ravel(), minlength=num_items).astype(np.int64)


def coverage(counts: Ints, num_recommendable: int) -> float:
    """Share of the recommendable items that anybody is recommended.

    Args:
        counts: What ``recommended_counts`` returned.
        num_recommendable: Items that could have been recommended, at least 1.

    Returns:
        A number in 0…1. It grows with the number of users: compare at equal users only.

    Raises:
        ValueError: If ``num_recommendable`` is below 1.

    Example:
        >>> coverage(recommended_counts(np.array([[2, 3], [2, 5]]), 6), 4)
        0.75
    """
    if num_recommendable < 1:
        raise ValueError(f"num_recommendable ({num_recommendable}) must be at least 1.")
    return float((counts > 0).sum() / num_recommendable)


def gini(counts: Ints, num_recommendable: int) -> float:
    """Inequality of how often items are recommended: 0 all alike, near 1 one item takes all.

    Args:
        counts: What ``recommended_counts`` returned; items never recommended count as 0.
        num_recommendable: Items that could have been recommended, at least 1.

    Returns:
        The Gini coefficient, 0 where nothing is recommended.

    Raises:
        ValueError: If fewer items are recommendable than were recommended.
    """
    shown = np.sort(counts[counts > 0]).astype(np.float64)
    if len(shown) > num_recommendable or num_recommendable < 1:
        raise ValueError(
            f"num_recommendable ({num_recommendable}) must be at least 1 and at least the number "
            f"of items recommended ({len(shown)})."
        )
    if not len(shown):
        return 0.0
    position = np.arange(num_recommendable - len(shown) + 1, num_recommendable + 1)
    share = (shown * (2 * position - num_recommendable - 1)).sum()
    return float(share / (num_recommendable * shown.sum()))


def log_popularity(train_count: Ints) -> Floats:
    """Natural log of 1 + the training events of each item.

    Args:
        train_count: Training events of each item, (N,).

    Returns:
        (N,) float64.
    """
    return np.log1p(train_count.astype(np.float64))


def self_information(train_count: Ints) -> Floats:
    """Surprise of each item: -log2 of its share of the training events, one event added to each.

    Args:
        train_count: Training events of each item, (N,).

    Returns:
        (N,) float64, bits.

    Example:
        >>> self_information(np.array([0, 1, 0])).tolist()
        [2.0, 1.0, 2.0]
    """
    share = (train_count + 1.0) / (train_count + 1.0).sum()
    bits: Floats = -np.log2(share)
    return bits


def mean_over_list(lists: Ints, values: Floats) -> Floats:
    """Mean of an item property over each list.

    With ``log_popularity`` this is how popular the recommendations are (take the same mean over the
    history away from it for the popularity bias), with ``self_information`` the novelty in bits.

    Args:
        lists: Recommended items, (U, k), -1 = none.
        values: The property of each item, (N,).

    Returns:
        (U,) float64; NaN for an empty list.
    """
    real = lists >= 0
    number = real.sum(axis=1)
    total = np.where(real, values[np.maximum(lists, 0)], 0.0).sum(axis=1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def category_diversity(lists: Ints, category: Ints) -> Floats:
    """Share of the pairs of a list whose two items are of different categories.

    Args:
        lists: Recommended items, (U, k), -1 = none.
        category: Category of each item, (N,); negative = unknown, and then left out.

    Returns:
        (U,) float64 in 0…1; NaN for a list with fewer than two items of known category.

    Example:
        >>> category_diversity(np.array([[0, 1, 2]]), np.array([7, 7, 9])).round(3).tolist()
        [0.667]
    """
    code = np.where(lists >= 0, category[np.maximum(lists, 0)], -1)
    known = code >= 0
    number = known.sum(axis=1)
    pairs = number * (number - 1)
    same = (code[:, :, None] == code[:, None, :]) & known[:, :, None] & known[:, None, :]
    equal = same.sum(axis=(1, 2)) - number
    return np.where(pairs > 0, 1 - equal / np.maximum(pairs, 1), np.nan)
