"""Full-catalogue evaluation: ranks by counting, in blocks of users × items.

The rank of a target is the number of candidates scored at least as high, itself included; so no
list is sorted and no users × catalogue matrix exists. A block of scores is used three times while
it is in the processor's cache: the target's score is read from it, seen items are struck out, and
the rest is counted and merged into the running top-k list.

Exactness: a target must be compared through the very figures of its block, since the same product
computed elsewhere may differ in the last bit. Where several blocks are needed, counting starts from
a separately computed score, is checked against the block's own, and is redone where they differ.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.batch import EvaluationBatch
from recsys.evaluation.protocol import Scorer, TargetScorer, candidate_range
from recsys.evaluation.table import Key, ListStatistics, UserTable
from recsys.metrics.catalogue import (
    category_diversity,
    log_popularity,
    mean_over_list,
    recommended_counts,
    self_information,
)

ITEM_BLOCK = 8_192
"""Items scored at once. With 256 requests a block of float32 scores is 8 MB."""

Ints = NDArray[np.int64]


class CatalogueLike(Protocol):
    """What the evaluation reads of a catalogue."""

    @property
    def num_items(self) -> int:
        """N, the reserved rows included."""
        ...

    @property
    def num_trained(self) -> int:
        """Items with a training event; internal ids 2 … num_trained + 1."""
        ...

    @property
    def train_count(self) -> Tensor:
        """Training events of each item, (N,) int64."""
        ...

    @property
    def coarse(self) -> Tensor:
        """Coarse code of each item, (N,) int64; 0 = unknown."""
        ...


def evaluate(
    scorers: Sequence[Scorer],
    batches: Iterable[EvaluationBatch],
    catalogue: CatalogueLike,
    *,
    k: Sequence[int] = (1, 5, 10, 20, 50, 100),
    filter_seen: bool = True,
    candidates: Literal["trained", "all"] = "trained",
    item_block: int = ITEM_BLOCK,
    list_k: int = 10,
) -> UserTable:
    """Rank the target of every request among all candidates, for every scorer and head.

    Args:
        scorers: What to test; names must be unique.
        batches: Requests and their targets; read once.
        catalogue: The items.
        k: List lengths of the metrics.
        filter_seen: Take the items of the user's history out. A target among them is a miss.
        candidates: ``trained`` ranks against items with a training event; ``all`` against the
            whole catalogue. A target that is no candidate is a miss.
        item_block: Items scored at once, at least 1; changes the memory used and nothing else.
        list_k: Length of the lists behind coverage, novelty, popularity and diversity; 0 = none.

    Returns:
        Ranks and list properties of every request, ordered by user, then by history length.

    Raises:
        ValueError: If names repeat, an argument is out of range, there are no requests, or a
            scorer returns NaN, a wrong shape or other heads than it declares.
    """
    names = [scorer.name for scorer in scorers]
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"scorers must be at least one, with unique names, not {names}.")
    for argument, value, least in (("item_block", item_block, 1), ("list_k", list_k, 0)):
        if value < least:
            raise ValueError(f"{argument} ({value}) must be at least {least}.")
    if not k or min(k) < 1:
        raise ValueError(f"k {tuple(k)} must be one or more list lengths of at least 1.")
    first, stop = candidate_range(
        candidates, num_trained=catalogue.num_trained, num_items=catalogue.num_items
    )
    item_properties = _ItemProperties.of(catalogue)
    list_k = min(list_k, stop - first)
    facts: list[dict[str, NDArray[np.generic]]] = []
    ranks: dict[Key, list[NDArray[np.float64]]] = {}
    lists: dict[Key, _Lists] = {}
    with torch.inference_mode():
        for batch in batches:
            seen = _SeenPairs.of(batch, first, stop)
            known = (batch.target >= first) & (batch.target < stop)
            facts.append(_facts(batch, seen, known, item_properties))
            miss = ~known | seen.has_target if filter_seen else ~known
            struck = seen if filter_seen else None
            for scorer in scorers:
                found = _sweep(scorer, batch, struck, first, stop, item_block, list_k)
                for head, result in found.items():
                    key = (scorer.name, head)
                    rank = result.rank.masked_fill(miss, torch.inf)
                    ranks.setdefault(key, []).append(rank.numpy())
                    if list_k:
                        lists.setdefault(key, _Lists(catalogue.num_items)).add(
                            result.ids.numpy(), item_properties
                        )
    if not facts:
        raise ValueError(
            "There are no requests to evaluate: the part holds no target. Check the split of the "
            "prepared data set and max_users."
        )
    joined = {name: np.concatenate([f[name] for f in facts]) for name in facts[0]}
    # Batches come in any order (by length, say): the table is always by user, then by moment.
    order = np.lexsort((joined["history_length"], joined["user_index"]))
    joined = {name: values[order] for name, values in joined.items()}
    return UserTable(
        user_index=joined.pop("user_index"),
        target=joined.pop("target"),
        history_length=joined.pop("history_length"),
        history_popularity=joined.pop("history_popularity"),
        target_seen=joined.pop("target_seen"),
        target_known=joined.pop("target_known"),
        situation=joined,
        ranks={key: np.concatenate(parts)[order] for key, parts in ranks.items()},
        lists={key: value.finish(order) for key, value in lists.items()},
        answers=tuple((scorer.name, scorer.heads[-1]) for scorer in scorers),
        k=tuple(k),
        list_k=list_k,
        candidates=candidates,
        num_candidates=stop - first,
        filter_seen=filter_seen,
    )


@dataclass(slots=True)
class _Counted:
    """Of one head and batch: the counts so far."""

    threshold: Tensor
    """Target's score to count against, (B,)."""
    actual: Tensor
    """Target's score as its own block gave it, (B,)."""
    count: Tensor
    """Candidates at or above the threshold, (B,) float64."""
    scores: Tensor | None = None
    """Running top-k, (B, k)."""
    items: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Result:
    rank: Tensor
    """(B,) float64, on the CPU."""
    ids: Tensor
    """Top-k internal ids, (B, k) int64, -1 = none, on the CPU."""


@dataclass(frozen=True, slots=True)
class _SeenPairs:
    """Seen candidates of a batch as (request, item) pairs, sorted by item."""

    rows: Tensor
    items: Tensor
    has_target: Tensor
    """Whether the request's target is among its own seen items, (B,) bool."""
    all_rows: Ints
    all_items: Ints
    """Every seen item, repeats and non-candidates included, for the history's statistics."""

    @staticmethod
    def of(batch: EvaluationBatch, first: int, stop: int) -> "_SeenPairs":
        seen, size = batch.seen.cpu().numpy(), len(batch.target)
        target = batch.target.cpu().numpy()
        rows, columns = np.nonzero(seen)
        items = seen[rows, columns].astype(np.int64)
        has_target = np.zeros(size, dtype=np.bool_)
        has_target[rows[items == target[rows]]] = True
        inside = (items >= first) & (items < stop)
        key = np.sort(items[inside] * size + rows[inside])  # repeats are struck twice: no harm
        return _SeenPairs(
            rows=torch.from_numpy(key % size),
            items=torch.from_numpy(key // size),
            has_target=torch.from_numpy(has_target),
            all_rows=rows,
            all_items=items,
        )

    def within(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Rows and items of the pairs whose item is in ``start`` … ``stop - 1``."""
        bounds = torch.searchsorted(self.items, torch.tensor([start, stop]))
        a, b = int(bounds[0]), int(bounds[1])
        return self.rows[a:b], self.items[a:b]


def _sweep(
    scorer: Scorer,
    batch: EvaluationBatch,
    seen: _SeenPairs | None,
    first: int,
    stop: int,
    item_block: int,
    list_k: int,
) -> dict[str, _Result]:
    """Ranks and lists of one scorer on one batch."""
    starts = range(first, stop, item_block)
    target = batch.target.clamp(first, stop - 1)  # misses are marked by the caller
    guess: dict[str, Tensor] | None = None
    if len(starts) > 1 and isinstance(scorer, TargetScorer):
        guess = scorer.score_items(batch, target)
    state = _pass(scorer, batch, target, seen, starts, stop, list_k, guess)
    if len(starts) > 1:
        wrong = any(not torch.equal(s.actual, s.threshold) for s in state.values())
        if wrong:
            exact = {head: s.actual for head, s in state.items()}
            for head, again in _pass(scorer, batch, target, seen, starts, stop, 0, exact).items():
                state[head].count = again.count
    results = {}
    for head, s in state.items():
        count = torch.where(s.actual == -torch.inf, torch.inf, s.count)
        if s.scores is None or s.items is None:
            ids = torch.empty(len(target), 0, dtype=torch.int64)
        else:
            ids = s.items.masked_fill(s.scores == -torch.inf, -1).cpu()
        results[head] = _Result(rank=count.cpu(), ids=ids)
    return results


def _pass(
    scorer: Scorer,
    batch: EvaluationBatch,
    target: Tensor,
    seen: _SeenPairs | None,
    starts: range,
    stop: int,
    list_k: int,
    thresholds: dict[str, Tensor] | None,
) -> dict[str, _Counted]:
    """Go once over the catalogue, counting against ``thresholds``.

    Without them a single block gives its own; of several, the targets' come too late, and the pass
    is good for reading them and for the lists.
    """
    state: dict[str, _Counted] = {}
    for start in starts:
        end = min(start + starts.step, stop)
        blocks = scorer.score(batch, start, end)
        if tuple(blocks) != scorer.heads:
            raise ValueError(
                f"Scorer {scorer.name!r} declares the heads {scorer.heads} and returned "
                f"{tuple(blocks)}."
            )
        here = torch.nonzero((target >= start) & (target < end))[:, 0]
        column = target[here] - start
        struck = None if seen is None else seen.within(start, end)
        for head, block in blocks.items():
            _check(block, scorer.name, head, (len(target), end - start))
            device = block.device
            if head not in state:
                whole = torch.full((len(target),), torch.inf, dtype=block.dtype, device=device)
                given = whole if thresholds is None else thresholds[head].to(whole)
                zeros = torch.zeros(len(target), dtype=torch.float64, device=device)
                state[head] = _Counted(given, whole.clone(), zeros)
            counted = state[head]
            counted.actual[here.to(device)] = block[here.to(device), column.to(device)]
            if thresholds is None and len(starts) == 1:
                counted.threshold = counted.actual.clone()
            if struck is not None:
                flat = struck[0] * block.shape[1] + (struck[1] - start)
                block.view(-1).index_fill_(0, flat.to(device), -torch.inf)
            if list_k:
                _merge_top(counted, block, start, list_k)
            counted.count += block.ge_(counted.threshold[:, None]).sum(dim=1)
    return state


def _check(block: Tensor, scorer: str, head: str, shape: tuple[int, int]) -> None:
    if block.shape != shape or not block.is_floating_point() or not block.is_contiguous():
        raise ValueError(
            f"Scorer {scorer!r}, head {head!r} must return contiguous floating point scores of "
            f"shape {shape}, not {block.dtype} of shape {tuple(block.shape)}."
        )
    bad = torch.isnan(block.amax(dim=1))  # amax passes NaN on
    if bool(bad.any()):
        raise ValueError(
            f"Scorer {scorer!r}, head {head!r} returned NaN for {int(bad.sum())} of {len(bad)} "
            "requests of a batch: a rank cannot be counted. Check the weights for NaN or infinity."
        )


def _merge_top(counted: _Counted, block: Tensor, start: int, k: int) -> None:
    scores, items = block_top_k(block, k)
    items = items + start
    if counted.scores is not None and counted.items is not None:
        scores = torch.cat((counted.scores, scores), dim=1)
        items = torch.cat((counted.items, items), dim=1)
        scores, best = scores.topk(min(k, scores.shape[1]), dim=1)
        items = items.gather(1, best)
    counted.scores, counted.items = scores, items


def block_top_k(block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Largest ``k`` of each row, several times faster than ``torch.topk`` on wide CPU blocks.

    Columns are cut into strips; the k best items lie in the k strips with the best maxima.

    Args:
        block: Scores, (B, n), without NaN.
        k: How many, at least 1.

    Returns:
        Scores and columns, (B, min(k, n)), best first. Which of several equal scores is kept is
        not defined.
    """
    rows, columns = block.shape
    depth = int((columns / k) ** 0.5)  # of a strip: items looked at are columns / depth + k * depth
    width = columns // depth if depth else 0
    if depth < 4 or width <= k:
        best = block.topk(min(k, columns), dim=1)
        return best.values, best.indices
    cut = width * depth
    strips = block[:, :cut].view(rows, depth, width)  # strip j: columns j, j + width, …
    chosen = strips.amax(dim=1).topk(k, dim=1).indices
    index = chosen[:, None, :] + width * torch.arange(depth, device=block.device)[None, :, None]
    index = index.reshape(rows, -1)
    if cut < columns:
        rest = torch.arange(cut, columns, device=block.device).expand(rows, -1)
        index = torch.cat((index, rest), dim=1)
    best = block.gather(1, index).topk(k, dim=1)
    return best.values, index.gather(1, best.indices)


@dataclass(frozen=True, slots=True)
class _ItemProperties:
    log_popularity: NDArray[np.float64]
    self_information: NDArray[np.float64]
    category: Ints

    @staticmethod
    def of(catalogue: CatalogueLike) -> "_ItemProperties":
        count = catalogue.train_count.numpy()
        coarse = catalogue.coarse.numpy().astype(np.int64)
        if len(np.unique(coarse[coarse > 0])) < 2:  # one category for all says nothing
            coarse = np.zeros_like(coarse)
        return _ItemProperties(
            log_popularity=log_popularity(count),
            self_information=self_information(count),
            category=np.where(coarse > 0, coarse, -1),
        )


class _Lists:
    """Gathers list statistics batch by batch; the lists themselves are dropped."""

    def __init__(self, num_items: int) -> None:
        self._parts: list[tuple[NDArray[np.float64], ...]] = []
        self._counts: Ints = np.zeros(num_items, dtype=np.int64)

    def add(self, ids: Ints, items: _ItemProperties) -> None:
        self._counts += recommended_counts(ids, len(self._counts))
        self._parts.append(
            (
                mean_over_list(ids, items.log_popularity),
                mean_over_list(ids, items.self_information),
                category_diversity(ids, items.category),
            )
        )

    def finish(self, order: Ints) -> ListStatistics:
        popularity, novelty, diversity = (
            np.concatenate(column)[order] for column in zip(*self._parts, strict=True)
        )
        return ListStatistics(popularity, novelty, diversity, self._counts)


def _facts(
    batch: EvaluationBatch, seen: _SeenPairs, known: Tensor, items: _ItemProperties
) -> dict[str, NDArray[np.generic]]:
    size = len(batch.target)
    number = np.bincount(seen.all_rows, minlength=size)
    popularity = items.log_popularity[seen.all_items]
    total = np.bincount(seen.all_rows, weights=popularity, minlength=size)
    facts: dict[str, NDArray[np.generic]] = {
        "user_index": batch.user_index.cpu().numpy(),
        "target": batch.target.cpu().numpy(),
        "history_length": batch.history_length.cpu().numpy(),
        "history_popularity": np.where(number > 0, total / np.maximum(number, 1), np.nan),
        "target_seen": seen.has_target.numpy(),
        "target_known": known.cpu().numpy(),
    }
    for name, values in batch.context.requests.situation.items():
        if values.dim() == 2 and values.dtype == torch.int64:
            facts[name] = values[:, 0].cpu().numpy()
    return facts
