"""Which candidates are ranked together: by a hash of the request and the item, never by order.

A candidate's logit depends on the other candidates of its group. Groups drawn by a hash are the
same however the list came, in every process, and another salt gives other groups, so that the
influence of the grouping can be measured.
"""

import torch
from torch import Tensor

from recsys.batch import CandidateSet
from recsys.types import PAD

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)
"""Odd constants of splitmix64, as signed integers."""
_LAST = torch.iinfo(torch.int64).max


def group_candidates(
    ids: Tensor, group_size: int, *, salt: int, request_key: Tensor
) -> tuple[CandidateSet, Tensor]:
    """Deal each request's candidates into as few groups as hold them, of sizes at most one apart.

    Groups of a request depend on its key, its items and the salt alone: not on the order of the
    list, its padding or the other requests.

    Args:
        ids: Internal item ids, (B, n) int64; ``PAD`` anywhere stands for nothing.
        group_size: C, at least 1.
        salt: Another one gives other groups.
        request_key: A number for each request that stays the same from run to run, (B,) int64.

    Returns:
        Candidates (B, 1, G, C), where G = ceil(most candidates of a request / C), and where each
        went: a place 0 … G · C - 1, (B, n) int64; 0 for padding. ``ungroup`` reads it.

    Raises:
        ValueError: If ``group_size`` is below 1 or the shapes disagree.

    Example:
        >>> ids = torch.tensor([[7, 8, 9]])
        >>> found, where = group_candidates(ids, 2, salt=0, request_key=torch.tensor([5]))
        >>> found.item.shape, bool((ungroup(found.item, where) == ids).all())
        (torch.Size([1, 1, 2, 2]), True)
    """
    if group_size < 1:
        raise ValueError(f"group_size ({group_size}) must be at least 1.")
    if ids.dim() != 2 or request_key.shape != ids.shape[:1]:
        raise ValueError(
            f"ids {tuple(ids.shape)} must be (B, n) and request_key {tuple(request_key.shape)} "
            "must be (B,)."
        )
    is_real = ids != PAD
    key = _mix(ids + _mix(request_key + _mix(torch.full_like(request_key, salt)))[:, None])
    order = torch.where(is_real, key >> 1, _LAST).argsort(dim=1, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(ids.shape[1], device=ids.device).expand_as(order))
    count = is_real.sum(dim=1, keepdim=True)
    groups = (-(-count // group_size)).clamp(min=1)
    where = torch.where(is_real, rank % groups * group_size + rank // groups, 0)
    most = int(groups.max()) if len(groups) else 1
    # Padding goes to a column of its own, which is then cut off.
    item = ids.new_full((len(ids), most * group_size + 1), PAD)
    item.scatter_(1, torch.where(is_real, where, most * group_size), ids)
    return CandidateSet(item[:, :-1].reshape(len(ids), 1, most, group_size)), where


def ungroup(values: Tensor, where: Tensor) -> Tensor:
    """Bring what was computed of grouped candidates back into the order of the list.

    Args:
        values: A value a candidate, (B, 1, G, C), or several, (B, 1, G, C, S).
        where: What ``group_candidates`` returned, (B, n) int64.

    Returns:
        (B, n) or (B, n, S); at padding whatever stood in the first place.
    """
    rows = torch.arange(len(where), device=where.device)[:, None]
    return values.flatten(1, 3)[rows, where]


def _mix(x: Tensor) -> Tensor:
    """The output function of splitmix64 (Steele et al., OOPSLA 2014), on int64 that wraps."""
    x = x + _GOLDEN
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * _FIRST  # the mask makes the shift an unsigned one
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * _SECOND
    return x ^ (x >> 31 & (1 << 33) - 1)
