"""Which items go together: item-kNN cosine and Swing graphs from flat training events.

One graph serves anchors, baselines, teachers and coarse codes. It is built in blocks of items, so
that memory grows with events and kept neighbours, never with pairs of items.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from recsys.types import FIRST_ID

BLOCK_PAIRS = 8_000_000
"""Item pairs counted at once (about 200 MB)."""
ROUNDS = 4
"""Of subspace iteration. Measured: the fifth and sixth no longer changed what clusters hold."""
MAX_SWING_USERS = 128
"""Users of an item that Swing compares: the cost of an item grows with their square."""


def cooccurrence(
    user: NDArray[np.integer],
    item: NDArray[np.integer],
    *,
    num_items: int,
    kind: Literal["cosine", "swing"] = "cosine",
    num_neighbours: int = 50,
    max_history: int = 200,
    window: int | None = None,
    alpha: float = 1.0,
) -> sp.csr_matrix:
    """Build the graph of items that the same users touched.

    - ``cosine``: users of both items / sqrt(users of one × users of the other).
      With ``window``: the same over pairs of events at most ``window`` apart in a history.
    - ``swing``: sum over pairs of users u, v of both items of
      ``1 / sqrt(|I_u| |I_v|) / (alpha + |I_u ∩ I_v|)``: two users who share little else say more.
      An item with more than 128 users is judged by 128 of them, evenly spaced.

    Args:
        user: ``(events,)`` any integer key; equal keys stand together.
        item: ``(events,)`` internal ids, chronological inside a user. Reserved ids are ignored.
        num_items: N, the reserved ids included.
        kind: ``cosine`` or ``swing``.
        num_neighbours: Most neighbours of an item; of equal weights the lower id stays.
        max_history: Only a user's latest items count: distinct ones, or with ``window`` events.
        window: Events two items may be apart; None = the whole history. For ``cosine`` only.
        alpha: Swing's smoothing, above 0.

    Returns:
        ``(N, N)`` float32, row i = neighbours of item i, columns ascending, zero diagonal.

    Raises:
        ValueError: If the arrays differ in length, an id is outside 0 … num_items - 1, or an
            argument is out of its range.

    Source:
        Cosine: Sarwar et al., "Item-based collaborative filtering", WWW 2001. Swing: Yang et al.,
        "Large Scale Product Graph Construction for Recommendation in E-commerce",
        arXiv:2010.05525, whose user weight 1/sqrt(|I_u|) is kept. The caps are ours.

    Example:
        >>> graph = cooccurrence(np.array([7, 7, 9, 9]), np.array([2, 3, 2, 4]), num_items=5)
        >>> print(graph[2].toarray().round(2))
        [[0.   0.   0.   0.71 0.71]]
    """
    _check(user, item, num_items, kind, num_neighbours, max_history, window, alpha)
    keys, items = _recent(user, item, max_history, distinct=window is None)
    if kind == "swing":
        blocks = _swing_blocks(keys, items, num_items, num_neighbours, alpha)
    elif window is None:
        blocks = _cosine_blocks(keys, items, num_items, num_neighbours)
    else:
        blocks = _window_blocks(keys, items, num_items, num_neighbours, window)
    graph = sp.vstack(list(blocks), format="csr", dtype=np.float32)
    graph.sort_indices()
    return graph


def cooccurrence_vectors(
    user: NDArray[np.integer],
    item: NDArray[np.integer],
    *,
    num_items: int,
    width: int,
    seed: int = 0,
    max_history: int = 200,
) -> NDArray[np.float32]:
    """Turn histories into item vectors that are close where the same users touched both items.

    They span the main directions of the matrix of co-occurrences, in which long histories and
    popular items are damped and an item does not count as its own neighbour. That matrix is never
    made: subspace iteration needs its product with a few vectors only, two passes over the events.

    Args:
        user: ``(events,)`` any integer key; equal keys stand together.
        item: ``(events,)`` internal ids, chronological inside a user. Reserved ids are ignored.
        num_items: N, the reserved ids included.
        width: Length of a vector, above 0.
        seed: Of the first, random directions.
        max_history: Only a user's latest distinct items count.

    Returns:
        ``(N, width)`` float32 unit vectors; zeros for items without neighbours.

    Raises:
        ValueError: If ``width`` is not above 0, or as ``cooccurrence``.

    Source:
        Halko et al., "Finding structure with randomness", SIAM Review 2011. The damping is ours: an
        item's count to the power of -1/3 made better clusters of a sparse log than -1/4 and -1/2,
        and as good ones of four others.
    """
    _check(user, item, num_items, "cosine", 1, max_history, None, 1.0)
    if width < 1:
        raise ValueError(f"width ({width}) must be above 0.")
    seen = _incidence(*_recent(user, item, max_history), num_items)
    seen = seen[np.diff(seen.indptr) > 1]  # a single item has no neighbour
    history = np.diff(seen.indptr)
    count = np.bincount(seen.indices, minlength=num_items)
    damped = np.repeat(history**-0.5, history) * np.maximum(count, 1)[seen.indices] ** (-1 / 3)
    seen.data = damped.astype(np.float32)
    by_item = seen.T.tocsr()
    own = np.bincount(seen.indices, seen.data**2, num_items).astype(np.float32)[:, None]
    found = np.random.default_rng(seed).standard_normal((num_items, width), np.float32)
    for _ in range(ROUNDS):
        found = by_item @ (seen @ found) - own * found
        square, turn = np.linalg.eigh(found.T @ found)
        found = found @ (turn / np.sqrt(np.maximum(square, 1e-7 * square[-1] + 1e-30)))
    found = by_item @ (seen @ found) - own * found
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return found / np.where(length > 0, length, 1)  # type: ignore[no-any-return]


def _check(
    user: NDArray[np.integer],
    item: NDArray[np.integer],
    num_items: int,
    kind: str,
    num_neighbours: int,
    max_history: int,
    window: int | None,
    alpha: float,
) -> None:
    if user.shape != item.shape or user.ndim != 1:
        raise ValueError(
            f"user and item must be flat and equally long, not {user.shape} and {item.shape}."
        )
    if len(item) and (item.min() < 0 or item.max() >= num_items):
        raise ValueError(
            f"item ids ({item.min()} … {item.max()}) must lie in 0 … num_items - 1 "
            f"({num_items - 1})."
        )
    if kind not in ("cosine", "swing"):
        raise ValueError(f"kind ({kind!r}) must be 'cosine' or 'swing'.")
    for name, value in (("num_neighbours", num_neighbours), ("max_history", max_history)):
        if value < 1:
            raise ValueError(f"{name} ({value}) must be above 0.")
    if window is not None and (window < 1 or kind == "swing"):
        raise ValueError(f"window ({window}) must be above 0 and goes with kind='cosine' only.")
    if not alpha > 0:
        raise ValueError(f"alpha ({alpha}) must be above 0.")


def _rank_from_end(user: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """User ordinals 0, 1, … of grouped keys, and how many of a user's events follow each event."""
    change = np.flatnonzero(np.diff(user)) + 1
    lengths = np.diff(np.concatenate(([0], change, [len(user)])))
    ordinal = np.repeat(np.arange(len(lengths)), lengths)
    return ordinal, np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(user))


def _recent(
    user: NDArray[np.integer], item: NDArray[np.integer], limit: int, *, distinct: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """User ordinals and known items of each user's latest events, or latest distinct items."""
    known = item >= FIRST_ID
    keys, items = _rank_from_end(user[known])[0], item[known].astype(np.int32)
    if distinct:
        keys, items = _latest_distinct(keys, items)
    recent = _rank_from_end(keys)[1] < limit
    return keys[recent], items[recent]


def _latest_distinct(
    user: NDArray[np.int64], item: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Keep the last event of every (user, item); order stays."""
    order = np.lexsort((item, user))  # stable: the last of a run is the latest
    last = np.ones(len(order), bool)
    last[:-1] = (np.diff(user[order]) != 0) | (np.diff(item[order]) != 0)
    keep = np.sort(order[last])
    return user[keep], item[keep]


def _cosine_blocks(
    user: NDArray[np.int64], item: NDArray[np.int32], num_items: int, top: int
) -> Iterator[sp.csr_matrix]:
    seen = _incidence(user, item, num_items)
    by_item = seen.T.tocsr()
    norm = np.sqrt(np.maximum(np.diff(by_item.indptr), 1))
    work = by_item @ np.diff(seen.indptr).astype(np.float64)  # pairs each item takes part in
    for start, stop in _item_blocks(work):
        block = (by_item[start:stop] @ seen).tocsr()
        yield _neighbours(block, start, norm, top)


def _window_blocks(
    user: NDArray[np.int64], item: NDArray[np.int32], num_items: int, top: int, window: int
) -> Iterator[sp.csr_matrix]:
    order = np.argsort(item, kind="stable")
    offsets = np.searchsorted(item[order], np.arange(num_items + 1))
    count = np.diff(offsets)
    norm = np.sqrt(np.maximum(count, 1))
    for start, stop in _item_blocks(count * 2.0 * window):
        events = order[offsets[start] : offsets[stop]]
        near = events[:, None] + np.r_[-window:0, 1 : window + 1]  # (events, 2 window)
        valid = (near >= 0) & (near < len(item))
        near = np.where(valid, near, 0)
        valid &= user[near] == user[events][:, None]
        row = np.broadcast_to((item[events] - start)[:, None], near.shape)[valid]
        column = item[near[valid]]
        block = sp.coo_matrix(
            (np.ones(len(row), np.float32), (row, column)), (stop - start, num_items)
        ).tocsr()
        yield _neighbours(block, start, norm, top)


def _swing_blocks(
    user: NDArray[np.int64], item: NDArray[np.int32], num_items: int, top: int, alpha: float
) -> Iterator[sp.csr_matrix]:
    seen = _incidence(user, item, num_items)
    by_item = seen.T.tocsr()
    weight = 1 / np.sqrt(np.maximum(np.diff(seen.indptr), 1))
    ones = np.ones(num_items)
    for start in range(0, num_items, 1024):
        stop = min(start + 1024, num_items)
        rows, columns, scores = [], [], []
        for i in range(start, stop):
            users = by_item.indices[by_item.indptr[i] : by_item.indptr[i + 1]]
            if len(users) < 2:
                continue
            if len(users) > MAX_SWING_USERS:
                users = users[np.linspace(0, len(users) - 1, MAX_SWING_USERS).astype(np.int64)]
            theirs = seen[users]
            pair = np.outer(weight[users], weight[users]) / (alpha + (theirs @ theirs.T).toarray())
            np.fill_diagonal(pair, 0)
            names, column = np.unique(theirs.indices, return_inverse=True)
            line = np.repeat(np.arange(len(users)), np.diff(theirs.indptr))
            small = sp.csr_matrix(
                (np.ones(len(line)), (line, column)), (len(users), len(names))
            ).T.tocsr()
            both = np.asarray(small @ pair)[column, line]
            score = np.bincount(column, both) / 2
            columns.append(names[score > 0])
            scores.append(score[score > 0])
            rows.append(np.full(len(columns[-1]), i - start))
        flat = [np.concatenate(part) if part else np.zeros(0) for part in (scores, rows, columns)]
        block = sp.csr_matrix(
            (flat[0], (flat[1].astype(np.int64), flat[2].astype(np.int64))),
            (stop - start, num_items),
        )
        yield _neighbours(block, start, ones, top)


def _incidence(user: NDArray[np.int64], item: NDArray[np.int32], num_items: int) -> sp.csr_matrix:
    """(users, N) matrix of ones; the pairs must be distinct."""
    users = int(user[-1]) + 1 if len(user) else 0
    indptr = np.searchsorted(user, np.arange(users + 1))
    return sp.csr_matrix((np.ones(len(item), np.float32), item, indptr), (users, num_items))


def _item_blocks(work: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    """Cut 0 … N into ranges of about equal work."""
    block = (np.cumsum(work) // BLOCK_PAIRS).astype(np.int64)
    cuts = np.flatnonzero(np.diff(block)) + 1
    edges = [0, *cuts.tolist(), len(work)]
    yield from zip(edges[:-1], edges[1:], strict=True)


def _neighbours(
    block: sp.csr_matrix, start: int, norm: NDArray[np.float64], top: int
) -> sp.csr_matrix:
    """Counts of items start … → weights of their ``top`` neighbours, the item itself left out."""
    row = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    other = block.indices != row + start
    row, column = row[other], block.indices[other]
    weight = (block.data[other] / (norm[row + start] * norm[column])).astype(np.float32)
    bounds = np.searchsorted(row, np.arange(block.shape[0] + 1))
    keep = np.ones(len(row), bool)
    # Positive float32 order as their bits do: weight descending, then id ascending, in one key.
    key = (~weight.view(np.uint32)).astype(np.uint64) << np.uint64(32) | column.astype(np.uint64)
    for i in np.flatnonzero(np.diff(bounds) > top):
        span = slice(bounds[i], bounds[i + 1])
        keep[span] = key[span] <= np.partition(key[span], top - 1)[top - 1]
    return sp.csr_matrix((weight[keep], (row[keep], column[keep])), block.shape)
