"""The ranking stage tested on candidate lists: scorers, the table of their logits, its metrics.

Every scorer scores the same lists. A list is dealt into groups by hash (``ranking/groups.py``) with
display positions left out; scorers that read groups are asked again under other salts, so that the
report can tell how much the grouping matters.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.batch import ContextBatch
from recsys.context.impressions import RankingBatch
from recsys.metrics.by_user import (
    auc_by_user,
    calibration_error_by_user,
    grouped_auc_by_user,
    log_loss_by_user,
    ndcg_by_user,
    normalized_entropy_by_user,
)
from recsys.ranking.calibrate import Calibration
from recsys.ranking.groups import group_candidates, ungroup
from recsys.types import PAD

Floats = NDArray[np.float64]
Logits = NDArray[np.float32]
Ints = NDArray[np.int64]

LIST_K = 10
"""Length of the list of NDCG."""


class CandidateScorer(Protocol):
    """Anything that gives the candidates of a request a logit for every task."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def reads_group(self) -> bool:
        """Whether a candidate's logit depends on the others of its group."""
        ...

    def score(self, context: ContextBatch) -> Tensor:
        """Score the candidates of ``context.requests.candidates``, (B, 1, G, C).

        Args:
            context: One request a row; display positions are unknown to all.

        Returns:
            Finite logits by task, weakest first, (B, 1, G, C, S); those of padding mean nothing.
            A scorer without tasks of its own gives every task the same ones.
        """
        ...


@dataclass(frozen=True, slots=True)
class RankingTable:
    """Logits of n candidates in R lists under every scorer, lists ordered by user and time."""

    tasks: tuple[str, ...]
    request: Ints
    """Row of the request among all lists of the data set, (R,)."""
    user_index: Ints
    """Row of its user in the data set, (R,)."""
    timestamp: Ints
    """Its moment, (R,)."""
    offsets: Ints
    """Where each list starts, (R + 1,)."""
    item: Ints
    """Internal ids, (n,)."""
    level: Ints
    """What became of each, (n,): task s is positive where the level is above s."""
    logits: dict[str, Logits]
    """Scorer → (n, S), grouped by the first salt."""
    regrouped: dict[str, tuple[Logits, ...]]
    """Scorer that reads groups → (n, S) by each further salt."""

    @property
    def owner(self) -> Ints:
        """List of each candidate, 0 … R - 1, (n,)."""
        return np.repeat(np.arange(len(self.request)), np.diff(self.offsets))

    @property
    def users(self) -> Ints:
        """User of each list, 0 … U - 1, (R,)."""
        return np.unique(self.user_index, return_inverse=True)[1]

    def merge(self, other: "RankingTable") -> "RankingTable":
        """Put the scorers of two tables of the same lists into one.

        Args:
            other: With other scorers.

        Returns:
            A new table.

        Raises:
            ValueError: If the lists differ, or a scorer's name occurs in both.
        """
        same = all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("request", "offsets", "item", "level")
        )
        if not same or self.tasks != other.tasks:
            raise ValueError(
                f"The two tables hold different lists ({len(self.request)} and "
                f"{len(other.request)}): score both on the same data, part and requests."
            )
        twice = sorted(set(self.logits) & set(other.logits))
        if twice:
            raise ValueError(f"Scorer names must be unique; both tables hold {twice}.")
        return replace(
            self,
            logits={**self.logits, **other.logits},
            regrouped={**self.regrouped, **other.regrouped},
        )


@torch.inference_mode()
def score_lists(
    scorers: Sequence[CandidateScorer],
    batches: Iterable[RankingBatch],
    tasks: Sequence[str],
    *,
    group_size: int,
    salts: int = 1,
) -> RankingTable:
    """Score the candidates of every list by every scorer.

    Args:
        scorers: What to test; names must be unique.
        batches: The lists; read once.
        tasks: Names of the tasks, weakest first.
        group_size: C, candidates ranked together.
        salts: How many groupings to score those with that read groups, at least 1.

    Returns:
        The table.

    Raises:
        ValueError: If names repeat, ``salts`` is below 1, there are no lists, or a scorer returns
            logits of another shape or such that are not finite.
    """
    names = [scorer.name for scorer in scorers]
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"scorers must be at least one, with unique names, not {names}.")
    if salts < 1:
        raise ValueError(f"salts ({salts}) must be at least 1.")
    facts: list[tuple[Ints, ...]] = []
    flat: list[tuple[Ints, Ints]] = []
    scored: dict[tuple[str, int], list[Logits]] = {}
    for batch in batches:
        ids, level = batch.candidates.item.flatten(1), batch.level.flatten(1)
        real, moment = ids != PAD, batch.context.requests.timestamp[:, 0]
        columns = (batch.request, batch.user_index, moment, real.sum(dim=1))
        facts.append(tuple(column.numpy() for column in columns))
        flat.append((ids[real].numpy(), level[real].numpy()))
        for salt in range(salts):
            groups, where = group_candidates(ids, group_size, salt=salt, request_key=batch.request)
            requests = replace(batch.context.requests, candidates=groups)
            context = replace(batch.context, requests=requests)
            for scorer in scorers:
                if salt == 0 or scorer.reads_group:
                    logits = _checked(scorer, context, (*groups.item.shape, len(tasks)))
                    kept = ungroup(logits, where)[real].numpy()
                    _refuse_infinite(scorer.name, kept)
                    scored.setdefault((scorer.name, salt), []).append(kept)
    if not facts:
        raise ValueError(
            "There are no lists to rank: the part holds none. Check the split of the prepared "
            "data set and the number of requests."
        )
    request, user_index, timestamp, size = (np.concatenate(c) for c in zip(*facts, strict=True))
    item, levels = (np.concatenate(c) for c in zip(*flat, strict=True))
    # Batches come in any order (by length, say): the table is always by user, then by moment.
    order = np.argsort(request)
    of_candidates = np.argsort(np.repeat(request, size), kind="stable")
    logits_of = {key: np.concatenate(parts)[of_candidates] for key, parts in scored.items()}
    return RankingTable(
        tasks=tuple(tasks),
        request=request[order],
        user_index=user_index[order],
        timestamp=timestamp[order],
        offsets=np.r_[0, np.cumsum(size[order])],
        item=item[of_candidates],
        level=levels[of_candidates],
        logits={name: logits_of[name, 0] for name in names},
        regrouped={
            scorer.name: tuple(logits_of[scorer.name, salt] for salt in range(1, salts))
            for scorer in scorers
            if scorer.reads_group
        },
    )


def _checked(scorer: CandidateScorer, context: ContextBatch, shape: tuple[int, ...]) -> Tensor:
    logits = scorer.score(context)
    if logits.shape != shape:
        raise ValueError(
            f"Scorer {scorer.name!r} must return logits of shape {shape}, not "
            f"{tuple(logits.shape)}."
        )
    return logits.float().cpu()


def _refuse_infinite(name: str, logits: Logits) -> None:
    wrong = int((~np.isfinite(logits)).any(axis=1).sum())
    if wrong:
        raise ValueError(
            f"Scorer {name!r} returned logits that are not finite for {wrong:,} of {len(logits):,} "
            "candidates of a batch. Check the weights for NaN or infinity."
        )


def ranking_metrics_by_user(
    table: RankingTable, logits: Logits, calibration: Calibration, score: Floats
) -> dict[str, Floats]:
    """Every metric of one scorer, as values a user whose mean is the metric.

    Args:
        table: The lists.
        logits: Of their candidates, (n, S).
        calibration: Turns logits into the probabilities that losses are taken of.
        score: What lists are ordered by, (n,).

    Returns:
        ``<task>/auc``, ``/gauc``, ``/log_loss``, ``/normalized_entropy``, ``/calibration_error``
        → (U,), and ``/ndcg@10`` → (users with a positive of the task,). Metrics of a task that has
        no positive, or no negative, are left out.
    """
    owner = table.owner
    users = table.users[owner]
    probabilities = calibration.apply(torch.from_numpy(logits)).numpy()
    found: dict[str, Floats | None] = {}
    for s, task in enumerate(table.tasks):
        labels, p = (table.level > s).astype(np.float64), probabilities[:, s]
        if labels.min() == labels.max():
            continue
        found |= {
            f"{task}/auc": auc_by_user(labels, logits[:, s], users),
            f"{task}/gauc": grouped_auc_by_user(labels, logits[:, s], owner, users),
            f"{task}/log_loss": log_loss_by_user(labels, p, users),
            f"{task}/normalized_entropy": normalized_entropy_by_user(labels, p, users),
            f"{task}/calibration_error": calibration_error_by_user(labels, p, users),
            f"{task}/ndcg@{LIST_K}": ndcg_by_user(labels, score, owner, users, k=LIST_K),
        }
    return {name: values for name, values in found.items() if values is not None}
