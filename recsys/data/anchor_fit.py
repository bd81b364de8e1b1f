"""Events → the tables of preference anchors that ``recsys.data.anchors`` describes.

Providers read the log bin by bin; a row of a table is what its provider knows at that moment.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from recsys.config import write_json
from recsys.data.anchors import (
    FOLDER,
    QUERY,
    AnchorInfo,
    AnchorsConfig,
    TableName,
    event_weights,
    files_of,
    groups_of,
)
from recsys.data.cooccurrence import cooccurrence
from recsys.data.dataset import Histories, read_arrow
from recsys.data.folder import sha256
from recsys.data.items import CATEGORY_NAMES, Coarse
from recsys.schema import Manifest
from recsys.types import FIRST_ID, PAD

Ints = NDArray[np.integer]

GRAPH_WINDOW = 5
"""Events two items of a history may be apart to be neighbours (``cosine``)."""
_EDGE_SAMPLE = 1_000_000


@dataclass(frozen=True, slots=True)
class _Events:
    """Events that count, of one bucket: flat arrays, users in order, chronological inside each."""

    user: NDArray[np.int64]
    """Counted through the buckets."""
    item: NDArray[np.int64]
    weight: NDArray[np.float64]
    query: NDArray[np.int64] | None


class Provider(Protocol):
    """One table in the making: events come in, bin after bin, and are asked for at any moment."""

    def start_bin(self) -> None:
        """What was read so far gets older by one bin."""
        ...

    def add(self, events: _Events) -> None:
        """Read events of the bin."""
        ...

    def scores(self) -> sp.csr_matrix:
        """Scores above 0 of everything read so far, (groups, N)."""
        ...


class Counted:
    """Counts of items in groups, older ones decayed: what is popular now, everywhere or somewhere.

    Args:
        shape: Groups and N.
        group_of: Group of each event; a negative one leaves the event out.
        decay: What a count is worth one bin later.
    """

    def __init__(
        self, shape: tuple[int, int], group_of: Callable[[_Events], Ints], decay: float
    ) -> None:
        self._scores = sp.csr_matrix(shape, dtype=np.float64)
        self._group_of, self._decay = group_of, decay

    def start_bin(self) -> None:
        """See ``Provider``."""
        self._scores = self._scores * self._decay
        self._scores.eliminate_zeros()

    def add(self, events: _Events) -> None:
        """See ``Provider``."""
        group = self._group_of(events)
        kept = group >= 0
        places = (group[kept], events.item[kept])
        self._scores += sp.csr_matrix((events.weight[kept], places), self._scores.shape)

    def scores(self) -> sp.csr_matrix:
        """See ``Provider``."""
        return self._scores


class Neighbours:
    """Items that the same users touched, by ``cooccurrence``.

    The graph is computed anew for each row: norms and caps of earlier rows do not add up.

    Args:
        tie: Order of items whose weights are equal, (N,), a permutation that leaves 0 and 1.
        kind: ``cosine`` or ``swing``.
        num_neighbours: Most neighbours of an item.
        share: Of the users that are read.
    """

    def __init__(
        self,
        tie: NDArray[np.int64],
        kind: Literal["cosine", "swing"],
        num_neighbours: int,
        share: float,
    ) -> None:
        self._tie, self._kind, self._num_neighbours = tie, kind, num_neighbours
        self._share = share
        self._read: list[tuple[Ints, Ints]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]

    def start_bin(self) -> None:
        """See ``Provider``; neighbours do not age."""

    def add(self, events: _Events) -> None:
        """See ``Provider``."""
        kept = _fraction(events.user) < self._share
        self._read.append((events.user[kept], self._tie[events.item[kept]]))

    def scores(self) -> sp.csr_matrix:
        """See ``Provider``."""
        user, item = (np.concatenate(column) for column in zip(*self._read, strict=True))
        self._read = [(user, item)]
        order = np.argsort(user, kind="stable")  # bins came in order, so histories stay so
        graph = cooccurrence(
            user[order],
            item[order],
            num_items=len(self._tie),
            kind=self._kind,
            num_neighbours=self._num_neighbours,
            window=GRAPH_WINDOW if self._kind == "cosine" else None,
        ).tocoo()
        item_of = np.argsort(self._tie)
        return sp.csr_matrix((graph.data, (item_of[graph.row], item_of[graph.col])), graph.shape)


def _fraction(user: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number of each user in [0, 1), as good as random: Fibonacci hashing."""
    mixed = user.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(32)).astype(np.float64) / 2**32


def top_of_rows(
    scores: sp.csr_matrix, length: int, tie: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The best columns of each row of a sparse matrix.

    Args:
        scores: (groups, N), stored values above 0.
        length: Columns wanted.
        tie: Of equal scores the column with the lowest entry here is first, (N,).

    Returns:
        Columns, best first, and their scores, (groups, length); ``PAD`` and 0 where a row is short.
    """
    row = np.repeat(np.arange(scores.shape[0]), np.diff(scores.indptr))
    # Floats above 0 are ordered as their bits are. Plain sorts of integers, first by (score, tie),
    # then by (row, place in that order), take a fifth of the time of one by all three keys.
    bits = scores.data.astype(np.float32).view(np.uint32)
    key = (~bits).astype(np.uint64) << np.uint64(32) | tie[scores.indices].astype(np.uint64)
    order = np.argsort(key)
    order = order[np.argsort(row[order] * len(row) + np.arange(len(row)))]
    rank = np.arange(len(row)) - scores.indptr[row]
    kept = rank < length
    places, order = (row[kept], rank[kept]), order[kept]
    ids = np.full((scores.shape[0], length), PAD, np.int32)
    best = np.zeros(ids.shape, np.float32)
    ids[places], best[places] = scores.indices[order], scores.data[order]
    return ids, best


class _Log:
    """The events that count, each in its bin or fold."""

    def __init__(
        self, folder: Path, manifest: Manifest, num_bins: int, starts: Sequence[int] | None
    ) -> None:
        self._weight = event_weights(manifest)
        self._buckets = [
            Histories(folder / "histories" / f"{i:05d}.arrow") for i in range(manifest.num_buckets)
        ]
        training_only = manifest.split.kind == "leave_one_out"
        counted = [_counted(b, self._weight, training_only) for b in self._buckets]
        self.num_events = sum(int(mask.sum()) for mask in counted)
        self.edges: tuple[int, ...] = ()
        if manifest.has_time:
            times = [b.events["timestamp"].values.numpy() for b in self._buckets]
            seen = [t[mask] for t, mask in zip(times, counted, strict=True)]
            self.edges = bin_edges(seen, num_bins, starts)
            edges = np.array(self.edges)
            parts = [np.maximum(np.searchsorted(edges, t, side="right") - 1, 0) for t in times]
        else:
            parts = [
                np.repeat(np.arange(b.num_users) % num_bins, np.diff(b.offsets.numpy()))
                for b in self._buckets
            ]
        # Two bytes an event is all that is kept of the log between bins.
        self._parts = [
            np.where(mask, part, -1).astype(np.int16)
            for part, mask in zip(parts, counted, strict=True)
        ]

    def read(self, number: int) -> Iterator[_Events]:
        """The events of one bin or fold, bucket by bucket."""
        before = 0
        for bucket, parts in zip(self._buckets, self._parts, strict=True):
            at = np.flatnonzero(parts == number)
            columns = {name: column.values.numpy() for name, column in bucket.events.items()}
            query = columns.get(f"event.{QUERY}")
            yield _Events(
                user=np.searchsorted(bucket.offsets.numpy(), at, side="right") - 1 + before,
                item=columns["item"][at].astype(np.int64),
                weight=self._weight[columns["behavior"][at]],
                query=None if query is None else query[at].astype(np.int64),
            )
            before += bucket.num_users


def _counted(
    bucket: Histories, weight: NDArray[np.float64], training_only: bool
) -> NDArray[np.bool_]:
    """Which events of a bucket count, (events,)."""
    counted: NDArray[np.bool_] = weight[bucket.events["behavior"].values.numpy()] > 0
    counted &= bucket.events["item"].values.numpy() >= FIRST_ID
    if training_only:
        offsets = bucket.offsets.numpy()
        end = np.repeat(offsets[:-1] + bucket.train_end.numpy(), np.diff(offsets))
        counted &= np.arange(len(counted)) < end
    return counted


def bin_edges(
    times: Sequence[Ints], num_bins: int, starts: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Cut time into bins of about equally many events.

    Args:
        times: Seconds since 1970, in pieces.
        num_bins: Bins wanted; fewer where many events share a second.
        starts: The bins' first moments, ascending, where they are not to be found: a log that grew
            keeps the bins it had.

    Returns:
        The first moment of each bin, and the second after the last event.

    Example:
        >>> bin_edges([np.array([1, 2, 2, 9]), np.array([5, 6])], 3)
        (1, 2, 6, 10)
    """
    end = max((int(t.max()) for t in times if len(t)), default=-1) + 1
    if starts is None:
        step = 1 + sum(map(len, times)) // _EDGE_SAMPLE
        sample = np.sort(np.concatenate([np.zeros(0, np.int64), *(t[::step] for t in times)]))
        ranks = np.arange(num_bins if len(sample) else 0) * len(sample) // num_bins
        starts = np.unique(sample[ranks]).tolist()
    return (*starts, end)


def fit_anchors(
    folder: Path,
    manifest: Manifest,
    config: AnchorsConfig,
    *,
    coarse: Coarse,
    starts: Sequence[int] | None = None,
) -> dict[str, str]:
    """Fit the tables and write them into a prepared data set.

    Memory grows with the events of ``graph_events``, the lists of one row and, for queries, the
    distinct (query, item) pairs; two bytes an event are kept besides.

    Args:
        folder: The data set; its histories and ``items.arrow`` are written already.
        manifest: Of the data set.
        config: What to fit.
        coarse: How coarse codes were made, as ``PrepareConfig`` says it.
        starts: As for ``bin_edges``.

    Returns:
        Relative path → SHA-256 of each file written.

    Raises:
        ValueError: If a table needs a column that the logs do not have.
    """
    if "category" in config.names:
        _check_categories(manifest, coarse)
    groups = {name: groups_of(name, manifest) for name in config.names}
    log = _Log(folder, manifest, config.num_bins, starts)
    info = AnchorInfo(
        names=config.names,
        length=config.length,
        edges=log.edges,
        folds=0 if log.edges else config.num_bins,
    )
    code = read_arrow(folder / "items.arrow")["coarse"].to_numpy().astype(np.int64)
    tie = _tie_order(manifest.num_items)

    def provider(name: TableName) -> Provider:
        if name == "neighbours":
            share = config.graph_events / max(1, log.num_events)
            return Neighbours(tie, config.graph, config.length, share)
        shape = (math.prod(groups[name]), manifest.num_items)
        return Counted(shape, _group_of(name, code), config.decay)

    (folder / FOLDER).mkdir()
    arrays = {
        part: np.lib.format.open_memmap(
            folder / FOLDER / f"{part}.npy", "w+", kind, (info.num_rows, *groups[name], info.length)
        )
        for name in config.names
        for part, kind in files_of(name).items()
    }
    for row, fitted in enumerate(_rows(log, info, lambda: {n: provider(n) for n in config.names})):
        for name, one in fitted.items():
            ids, scores = top_of_rows(one.scores(), info.length, tie)
            arrays[name][row] = ids.reshape(arrays[name][row].shape)
            if f"{name}_weight" in arrays:
                tiny = np.finfo(np.float16).smallest_subnormal  # no neighbour is lost to rounding
                arrays[f"{name}_weight"][row] = np.where(ids, np.maximum(scores, tiny), 0)
    for array in arrays.values():
        array.flush()
    write_json(folder / FOLDER / "anchors.json", info)
    return {f"{FOLDER}/{p.name}": sha256(p) for p in sorted((folder / FOLDER).iterdir())}


def _rows(
    log: _Log, info: AnchorInfo, new: Callable[[], dict[TableName, Provider]]
) -> Iterator[dict[TableName, Provider]]:
    """The providers as each row must see them, row after row."""
    if info.folds:
        for fold in range(info.num_rows):
            providers = new()
            _read(providers, log, (other for other in range(info.folds) if other != fold))
            yield providers
        return
    providers = new()
    for number in range(info.num_rows):
        yield providers  # before the bin's own events are read
        for one in providers.values():
            one.start_bin()
        _read(providers, log, [number])


def _read(providers: dict[TableName, Provider], log: _Log, numbers: Iterable[int]) -> None:
    for number in numbers:
        for events in log.read(number):
            for one in providers.values():
                one.add(events)


def _check_categories(manifest: Manifest, coarse: Coarse) -> None:
    """Refuse clusters of co-occurrence.

    They are learnt from the whole training part, where the item asked for follows the last one: its
    cluster would tell. (On a small sparse log such anchors held the answer 2.2 times as often in
    training as in the test part.)
    """
    features = {f.name: f.kind for f in manifest.item_features}
    named = any(features.get(name, "text") != "text" for name in CATEGORY_NAMES)
    told = named or "text" in features.values()
    if coarse in ("cooccurrence", "none") or (coarse == "auto" and not told):
        raise ValueError(
            f"The anchors 'category' need categories that items declare, not coarse codes by "
            f"{coarse!r} from the item features {list(features)}: clusters of co-occurrence know "
            "which item follows. Declare a category or a text in columns.item_features, or leave "
            "'category' out of anchors.names."
        )


def _group_of(name: TableName, coarse: NDArray[np.int64]) -> Callable[[_Events], Ints]:
    """How a counted table groups events; unknown categories and queries are no group."""
    if name == "trending":
        return lambda events: np.zeros(len(events.item), np.int64)
    if name == "category":
        code = np.where(coarse >= FIRST_ID, coarse, -1)
        return lambda events: code[events.item]

    def of_query(events: _Events) -> Ints:
        assert events.query is not None
        return np.where(events.query >= FIRST_ID, events.query, -1)

    return of_query


def _tie_order(num_items: int) -> NDArray[np.int64]:
    """An order for equal scores that knows nothing.

    Ids are ordered by training events: the lower id would be the item that becomes popular later.
    """
    known = FIRST_ID + np.random.default_rng(0).permutation(num_items - FIRST_ID)
    return np.concatenate((np.arange(FIRST_ID), known))
