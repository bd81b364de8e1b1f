"""Coarse codes of items, the easy target of an early reasoning step: a category or a cluster."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

_SAMPLE = 64
"""Vectors a cluster that centres are fitted on; the others only look for the nearest one."""
_BLOCK = 8192
"""Vectors whose distances to all centres exist at once."""


def coarse_codes(
    vectors: NDArray[np.float32], *, num_clusters: int, seed: int = 0
) -> NDArray[np.int64]:
    """Cluster vectors by k-means, fitted on a sample.

    Args:
        vectors: ``(n, width)``, for example text or co-occurrence vectors.
        num_clusters: Most clusters to make; fewer where there are fewer distinct vectors.
        seed: The same seed and vectors give the same codes.

    Returns:
        ``(n,)`` int64 codes 0, 1, …, each used at least once, below ``num_clusters``.

    Raises:
        ValueError: If ``num_clusters`` is not above 0 or ``vectors`` is not a finite matrix.

    Source:
        Lloyd's iterations from the centres of Arthur and Vassilvitskii, "k-means++", SODA 2007.
        Written out, because importing scikit-learn takes as long as sorting 1.5 million events.
    """
    if num_clusters < 1:
        raise ValueError(f"num_clusters ({num_clusters}) must be above 0.")
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise ValueError(
            f"vectors of shape {vectors.shape} must be a matrix (n, width) of finite numbers."
        )
    if len(vectors) == 0:
        return np.zeros(0, np.int64)
    random = np.random.default_rng(seed)
    sample = vectors[random.permutation(len(vectors))[: _SAMPLE * num_clusters]]
    centres = _spread_out(sample, num_clusters, random)
    for _ in range(10):
        label = _nearest(sample, centres)
        ones, rows = np.ones(len(sample), np.float32), np.arange(len(sample) + 1)
        members = sp.csr_matrix((ones, label, rows), (len(sample), len(centres)))
        count = np.bincount(label, minlength=len(centres))
        used = np.flatnonzero(count)
        centres[used] = (members.T @ sample)[used] / count[used, None]
    return np.unique(_nearest(vectors, centres), return_inverse=True)[1].astype(np.int64)


def _spread_out(
    sample: NDArray[np.float32], number: int, random: np.random.Generator
) -> NDArray[np.float32]:
    """Draw first centres, each by its squared distance to the nearest one before."""
    chosen, distance = [0], np.full(len(sample), np.inf, np.float32)
    while len(chosen) < number:
        apart = sample - sample[chosen[-1]]
        distance = np.minimum(distance, np.einsum("nd,nd->n", apart, apart))
        reach = np.cumsum(distance, dtype=np.float64)
        if reach[-1] == 0:  # every vector is a centre already
            break
        chosen.append(int(np.searchsorted(reach, random.random() * reach[-1], side="right")))
    return sample[chosen]


def _nearest(vectors: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """Number of the nearest centre of each vector, (n,)."""
    half = 0.5 * np.einsum("kd,kd->k", centres, centres)
    blocks = range(0, len(vectors), _BLOCK)
    return np.concatenate([(vectors[i : i + _BLOCK] @ centres.T - half).argmax(1) for i in blocks])


def codes_from_categories(
    values: Sequence[str | None] | Sequence[Sequence[str]], *, min_count: int = 5
) -> tuple[NDArray[np.int64], list[str]]:
    """Give every item one category that is specific, yet common enough to learn.

    A list of categories is answered by its rarest value that still has ``min_count`` items; of
    equally rare ones the last counts, which in a path is the deepest.

    Args:
        values: An item's category, its categories, or None.
        min_count: Items a category needs.

    Returns:
        ``(n,)`` int64 codes, -1 where no value of the item is common enough; and the categories
        in code order, by name. Only categories that some item got have a code.

    Raises:
        ValueError: If ``min_count`` is not above 0.

    Example:
        >>> films = [["film", "noir"], ["film"], ["noir"]]
        >>> codes, names = codes_from_categories(films, min_count=2)
        >>> codes.tolist(), names
        ([1, 0, 1], ['film', 'noir'])
    """
    if min_count < 1:
        raise ValueError(f"min_count ({min_count}) must be above 0.")
    lists: list[list[str]] = [
        [value] if isinstance(value, str) else [one for one in (value or ()) if one]
        for value in values
    ]
    counts = Counter(name for names in lists for name in set(names) if name)
    chosen: list[str | None] = []
    for names in lists:
        common = [name for name in reversed(names) if counts[name] >= min_count]
        chosen.append(min(common, key=lambda name: counts[name]) if common else None)
    names = sorted({name for name in chosen if name is not None})
    code = {name: i for i, name in enumerate(names)}
    return np.array([-1 if name is None else code[name] for name in chosen], np.int64), names
