"""Both stages on one reading of each history: retrieve, filter, rank, re-order. Internal ids.

```
history ─ read once ─┬─ query ─► index, filters ─► top n ─┬─ ranked in groups ─ final score ─┐
                     └────────────────────────────────────┘                                  │
                          k lists  ◄─  rules of the policy  ◄─  ranked, then the others  ◄───┘
```
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recsys.cascade.frames import one_chunk
from recsys.cascade.lists import CASCADE, POPULAR, RankedLists
from recsys.cascade.retrieve import Retriever
from recsys.context.anchors import AnchorReader
from recsys.data.dataset import Catalogue, Histories
from recsys.data.idmap import stable_hash
from recsys.ranking.calibrate import Calibration, declared_task
from recsys.ranking.formula import FinalScore
from recsys.ranking.groups import group_candidates, ungroup
from recsys.ranking.policy import Available, Policy
from recsys.types import PAD

Stages = Literal["retrieval", "cascade"]
_Search = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""Users (R,) and the items allowed (N,) → scores and ids, (R, n)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How lists are made."""

    k: int
    """Items a user."""
    stages: Stages | None = None
    """None is the cascade where the model can rank."""
    num_candidates: int = 200
    """The retrieved items that are ranked, and that a policy may choose from at least."""
    final_score: str | None = None
    """What ranked items are ordered by: a task or a formula; None is the last task."""
    policy: Policy = field(default_factory=Policy)
    as_of: int | None = None
    """Moment of scoring, seconds since 1970; events at or after it are not seen. None answers
    right after each user's last event."""
    filter_seen: bool = True
    """Never return an item of the visible history."""
    allow: Tensor | None = None
    """Items that may be returned, (N,) bool; None for all."""
    anchors: AnchorReader | None = None
    """Reads preference anchors of the time asked for; None reads the model's, which are of now."""
    batch_size: int = 256
    """Users read at once."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name in ("k", "num_candidates", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1.")

    def rules(self, *, filters: bool) -> Policy:
        """The policy's filters, which act before the ranking, or the rules that act after it."""
        return Policy(tuple(r for r in self.policy.rules if isinstance(r, Available) == filters))

    @property
    def available(self) -> Tensor | None:
        """Items that are allowed and that every filter lets through, (N,) bool; None for all."""
        allow = self.allow
        for rule in self.policy.rules:
            if isinstance(rule, Available):
                allow = rule.items if allow is None else allow & rule.items
        return allow


class Cascade:
    """A retriever and the ranking stage of its model.

    Args:
        retriever: The first stage.
        catalogue: The items, whose numeric columns a final score may read.
        calibration: Of the model's tasks.
    """

    def __init__(
        self, retriever: Retriever, catalogue: Catalogue, calibration: Calibration
    ) -> None:
        self.retriever = retriever
        self.catalogue = catalogue
        self.calibration = calibration
        self.tasks = tuple(calibration.tasks)
        self._final_scores: dict[str, FinalScore] = {}

    def stages(self, options: Options) -> Stages:
        """Which stages answer.

        Raises:
            ValueError: If the ranking is asked for and the model has none, or a final score is
                asked for without the ranking.
        """
        can_rank = self.retriever.model.can_rank
        stages = options.stages or ("cascade" if can_rank else "retrieval")
        if stages == "cascade" and not can_rank:
            raise ValueError(
                "stages ('cascade') needs a model with a ranking stage, and this one has none: "
                "train it with a ranker, or ask for stages='retrieval'."
            )
        if stages == "retrieval" and options.final_score is not None:
            raise ValueError(
                f"final_score ({options.final_score!r}) orders ranked items, and only the "
                "retrieval was asked for, or the model has no ranking stage."
            )
        return stages

    @torch.inference_mode()
    def answer(
        self, bucket: Histories, options: Options, *, rows: Tensor | None = None
    ) -> tuple[RankedLists, Counter[str]]:
        """Find the best items of users of one bucket.

        Args:
            bucket: The users.
            options: How.
            rows: Which users, (U,) int64, none twice; None for all.

        Returns:
            The lists, a row a user in the order of ``rows``, and what the policy did.

        Raises:
            ValueError: If ``as_of`` is given to a model without times, or the stages and the final
                score do not suit the model.
        """
        retriever, model = self.retriever, self.retriever.model
        retriever.check_moment(options.as_of)
        final = self._final(options)
        rows = torch.arange(bucket.num_users) if rows is None else rows
        answerable = retriever.answerable(bucket, rows, as_of=options.as_of)
        popular, effects = self.popular(options)
        num_popular = int((~answerable).sum())
        effects = Counter({name: count * num_popular for name, count in effects.items()})
        lists = popular.rows(torch.zeros(len(rows), dtype=torch.long))
        place = torch.zeros(bucket.num_users, dtype=torch.long)
        place[rows] = torch.arange(len(rows))
        keys = _request_keys(bucket, rows)
        for row, context, seen in retriever.batches(
            bucket,
            rows[answerable],
            as_of=options.as_of,
            batch_size=options.batch_size,
            anchors=options.anchors,
        ):
            state = None
            if final is None:
                query = retriever.query(context)
            else:
                state = model.read(context, retriever.item_vectors)
                query = model.query_of(state)[:, 0].float()
            exclude = seen if options.filter_seen else None
            found, told = self._retrieve(query, exclude, options)
            if final is not None:
                found = self._rank(state, found, keys[place[row]], final, options)
            found, changed = _reorder(found, options)
            lists.put(place[row], found)
            effects.update(told)
            effects.update(changed)
        return lists, effects

    def popular(self, options: Options) -> tuple[RankedLists, Counter[str]]:
        """The list of users without known history.

        Args:
            options: How.

        Returns:
            One list, and what the policy did to it.
        """
        size = self._size(options)

        def search(users: Tensor, allow: Tensor | None) -> tuple[Tensor, Tensor]:
            scores, ids = self.retriever.popular(size, allow)
            return scores[None], ids[None]

        scores, ids, effects = _filtered(search, torch.zeros(1, dtype=torch.long), options)
        tasks = len(self.tasks) if self.stages(options) == "cascade" else 0
        lists = RankedLists.empty(1, size, tasks)
        lists.ids[:], lists.scores[:], lists.source[:] = ids, scores, POPULAR
        lists, changed = _reorder(lists, options)
        effects.update(changed)
        return lists, effects

    def _final(self, options: Options) -> FinalScore | None:
        """The final score of ranked items; None where nothing is ranked."""
        if self.stages(options) == "retrieval":
            return None
        formula = options.final_score or declared_task(self.retriever.manifest, self.tasks)
        if formula not in self._final_scores:
            self._final_scores[formula] = FinalScore(formula, self.tasks, self.catalogue)
        return self._final_scores[formula]

    def _size(self, options: Options) -> int:
        """Items to retrieve for a user."""
        size = options.k
        if self.stages(options) == "cascade":
            size = max(size, options.num_candidates)
        if options.rules(filters=False).rules:  # something to choose from
            size = max(2 * options.k, options.num_candidates)
        return max(options.k, min(size, int(self.retriever.recommendable.sum())))

    def _retrieve(
        self, query: Tensor, exclude: Tensor | None, options: Options
    ) -> tuple[RankedLists, Counter[str]]:
        """The first stage's lists."""
        size = self._size(options)

        def search(users: Tensor, allow: Tensor | None) -> tuple[Tensor, Tensor]:
            left_out = None if exclude is None else exclude[users]
            return self.retriever.search(query[users], size, exclude=left_out, allow=allow)

        scores, ids, effects = _filtered(search, torch.arange(len(query)), options)
        return RankedLists.of(ids, scores), effects

    def _rank(
        self, state: Any, found: RankedLists, keys: Tensor, final: FinalScore, options: Options
    ) -> RankedLists:
        """Order the first of the retrieved items by the second stage; the others follow."""
        size, retriever = options.num_candidates, self.retriever
        ids, device = found.ids[:, :size], retriever.device
        groups, where = group_candidates(
            ids.clamp(min=PAD), retriever.context.group_size, salt=0, request_key=keys
        )
        logits = retriever.model.rank_of(state, groups.to(device)).cpu()
        probabilities = self.calibration.apply(ungroup(logits, where))
        real = ids >= 0
        score = torch.full(ids.shape, -torch.inf, dtype=torch.float64)
        score[real] = final(probabilities[real], found.scores[:, :size][real], ids[real])
        order = score.argsort(dim=1, descending=True, stable=True)
        rest = torch.arange(order.shape[1], found.ids.shape[1]).expand(len(ids), -1)
        source, scores = found.source.clone(), found.scores.clone()
        source[:, :size][real] = CASCADE
        scores[:, :size] = score
        shown = torch.full((*found.ids.shape, len(self.tasks)), torch.nan)
        shown[:, :size] = probabilities
        ranked = RankedLists(found.ids, scores, source, found.retrieval, shown)
        return ranked.ordered(torch.cat((order, rest), dim=1))


def _request_keys(bucket: Histories, rows: Tensor) -> Tensor:
    """A number for each user that is the same in every run and bucket, (R,) int64."""
    names = one_chunk(bucket.user_ids).take(pa.array(rows.numpy()))
    return torch.from_numpy(stable_hash(names).view(np.int64))


def _filtered(
    search: _Search, users: Tensor, options: Options
) -> tuple[Tensor, Tensor, Counter[str]]:
    """Search, and search again for the users whose lists held something that is not available.

    Two searches, so that a filter can tell whom it touched: its effect is on the first k of the
    retrieval, since what it takes out is never ranked.
    """
    scores, ids = search(users, options.allow)
    filters = options.rules(filters=True)
    if not filters.rules:
        return scores, ids, Counter()
    order, effects = filters.apply(ids, options.k)
    short = ((order < 0) != (ids < 0)).any(dim=1)
    if short.any():
        scores[short], ids[short] = search(users[short], options.available)
    return scores, ids, effects


def _reorder(lists: RankedLists, options: Options) -> tuple[RankedLists, Counter[str]]:
    """Apply the rules that come after the ranking, and keep the first k."""
    policy = options.rules(filters=False)
    if not policy.rules:
        return lists.first(options.k), Counter()
    order, effects = policy.apply(lists.ids, options.k)
    return lists.ordered(order[:, : options.k]), effects
