"""Candidates for logs without lists that were shown: the targets among hard and easy negatives.

A request's candidates are its targets (of every task), items that the retrieval itself would
return, items of the target's category, and random ones. Ranking then learns on what it will be
asked: to tell the retrieval's own best apart.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.batch import CandidateSet
from recsys.types import FIRST_ID, PAD

MOST_SEARCHED = 8192
"""Trained items that hard negatives are looked for among; a larger catalogue is sampled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateConfig:
    """What the negatives of a request are."""

    hard_share: float = 0.5
    """Drawn from the retrieval's best ``hard_top``."""
    category_share: float = 0.25
    """Of the target's category or cluster; the rest is uniform over trained items."""
    hard_top: int = 200

    def __post_init__(self) -> None:
        """Check the shares."""
        shares = (self.hard_share, self.category_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(
                f"hard_share ({self.hard_share}) and category_share ({self.category_share}) must "
                "be at least 0 and at most 1 together."
            )
        if self.hard_top < 1:
            raise ValueError(f"hard_top ({self.hard_top}) must be at least 1.")


@torch.no_grad()
def draw_candidates(
    config: CandidateConfig,
    *,
    query: Tensor,
    vectors: Tensor,
    task_item: Tensor,
    num_trained: int,
    coarse: Tensor | None,
    groups: int,
    group_size: int,
) -> tuple[CandidateSet, Tensor]:
    """Draw the candidates of every request, on torch's own random numbers.

    Args:
        config: What they are.
        query: The retrieval's answers, (B, Q, D).
        vectors: Vectors of the whole catalogue, (N, D).
        task_item: Next item of each task, weakest first, (B, Q, S) int64; ``PAD`` = none.
        num_trained: Items with a training event; only they are drawn.
        coarse: Coarse code of every item, (N,) int64; None draws no category negatives.
        groups: G.
        group_size: C.

    Returns:
        Candidates (B, Q, G, C) in random order, ``PAD`` where a draw was a target or came twice,
        and what became of each (``Labels.candidate_level``). Requests without a target have none.
    """
    device, room = task_item.device, groups * group_size
    num_tasks = task_item.shape[-1]
    left = max(0, room - num_tasks)
    num_hard = round(left * config.hard_share)
    num_alike = 0
    if coarse is not None:
        num_alike = min(round(left * config.category_share), left - num_hard)
    drawn = [task_item, _hard(config, query, vectors, num_trained, num_hard)]
    if coarse is not None and num_alike:
        drawn.append(_alike(coarse[: FIRST_ID + num_trained], task_item[..., -1], num_alike))
    rest = (*task_item.shape[:2], left - num_hard - num_alike)
    drawn.append(torch.randint(FIRST_ID, FIRST_ID + num_trained, rest, device=device))
    item = torch.cat(drawn, dim=-1)[..., :room]
    level = torch.zeros_like(item)
    for task in range(num_tasks):
        hit = (item == task_item[..., task : task + 1]) & (item != PAD)
        level = torch.where(hit, task + 1, level)
    # The first of equal items stays, so a target keeps the place it was given above.
    ordered, where = item.sort(dim=-1, stable=True)
    again = torch.zeros_like(item, dtype=torch.bool)
    again[..., 1:] = ordered[..., 1:] == ordered[..., :-1]
    repeated = torch.zeros_like(again).scatter(-1, where, again)
    dropped = repeated | (task_item == PAD).all(dim=-1, keepdim=True)
    item, level = item.masked_fill(dropped, PAD), level.masked_fill(dropped, 0)
    dealt = torch.rand(item.shape, device=device).argsort(dim=-1)
    shape = (*item.shape[:2], groups, group_size)
    return CandidateSet(item.gather(-1, dealt).view(shape)), level.gather(-1, dealt).view(shape)


def _hard(
    config: CandidateConfig, query: Tensor, vectors: Tensor, num_trained: int, count: int
) -> Tensor:
    """Random members of each query's best items, (B, Q, count)."""
    ids = torch.arange(FIRST_ID, FIRST_ID + num_trained, device=query.device)
    if num_trained > MOST_SEARCHED:
        ids = ids[torch.randperm(num_trained, device=query.device)[:MOST_SEARCHED]]
    top = max(count, min(config.hard_top * len(ids) // num_trained, len(ids)))
    best = (query @ vectors[ids].T).topk(min(top, len(ids)), dim=-1).indices
    picked = torch.rand(best.shape, device=query.device).argsort(dim=-1)[..., :count]
    return ids[best.gather(-1, picked)]


def _alike(coarse: Tensor, target: Tensor, count: int) -> Tensor:
    """Random items of each target's category, (..., count)."""
    by_code = coarse.argsort(stable=True)
    sizes = torch.bincount(coarse)
    starts = sizes.cumsum(0) - sizes
    code = coarse[target.clamp(max=len(coarse) - 1)][..., None]
    draw = (torch.rand(*target.shape, count, device=target.device) * sizes[code]).long()
    found = by_code[starts[code] + draw]
    return torch.where(found < FIRST_ID, PAD, found)
