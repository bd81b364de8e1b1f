"""Lists that were shown, as requests of a training batch: which moments, which candidates."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.batch import CandidateSet
from recsys.context.config import ContextConfig
from recsys.data.dataset import Impressions
from recsys.types import PAD

TRAINING = 0
"""Part of an impression that training may see."""


@dataclass(frozen=True, slots=True)
class Shown:
    """The lists drawn for a batch."""

    index: Tensor
    """Row of each in the bucket's impressions, (B, Q) int64; 0 where there is none."""
    is_real: Tensor
    cut: Tensor
    """Events of the window that the request may see, (B, Q) int64."""
    timestamp: Tensor
    asked: dict[str, Tensor]
    """What the request brought along, (B, Q) each."""


def sample_requests(
    lists: Impressions,
    row: Tensor,
    first: Tensor,
    length: Tensor,
    config: ContextConfig,
    random: np.random.Generator,
) -> Shown:
    """Draw lists that were shown inside windows, without replacement.

    A list belongs to the window that holds the last event before it; one before all events to the
    user's first window.

    Args:
        lists: Of the bucket, sorted by user.
        row: User of each window, (B,) int64.
        first: First event of each window, counted from the user's first, (B,) int64.
        length: Events of each window, (B,) int64.
        config: How many a window.
        random: Draws.

    Returns:
        At most ``config.requests_per_row`` lists a window.
    """
    known = (lists.part == TRAINING).nonzero()[:, 0]
    user, none = lists.user[known], torch.zeros(1, dtype=torch.long)
    low, high = (torch.searchsorted(user, row.contiguous(), right=right) for right in (False, True))
    at = low[:, None] + torch.arange(max(1, int((high - low).max())))
    inside = at < high[:, None]
    at = torch.where(inside, at, len(known))
    index = torch.cat((known, none))[at]
    cut = torch.cat((lists.place[known], none))[at] - first[:, None]
    inside &= cut <= length[:, None]
    inside &= (cut > 0) | ((cut == 0) & (first == 0)[:, None])
    score = torch.where(inside, torch.from_numpy(random.random(tuple(inside.shape))), 2.0)
    picked, column = score.topk(min(config.requests_per_row, score.shape[1]), 1, largest=False)
    is_real = picked < 1.5
    index = torch.where(is_real, index.gather(1, column), 0)
    cut = torch.where(is_real, cut.gather(1, column), 0)
    if not len(lists):
        return Shown(index, is_real, cut, index, {})
    asked = {name: value[index] for name, value in lists.situation.items()}
    return Shown(index, is_real, cut, torch.where(is_real, lists.timestamp[index], 0), asked)


def sample_lists(
    lists: Impressions, shown: Shown, config: ContextConfig, random: np.random.Generator
) -> tuple[CandidateSet, Tensor]:
    """Deal the items of lists into groups at random; positives first where not all fit.

    Args:
        lists: Of the bucket.
        shown: Which of them.
        config: C and G.
        random: Draws.

    Returns:
        Candidates (B, Q, G, C), and what became of each (``Labels.candidate_level``).
    """
    shape = (*shown.index.shape, config.groups, config.group_size)
    room = config.groups * config.group_size
    if not bool(shown.is_real.any()):
        nothing = torch.zeros(shape, dtype=torch.long)
        return CandidateSet(nothing, nothing), nothing
    start = lists.item.offsets[shown.index]
    length = torch.where(shown.is_real, lists.item.offsets[shown.index + 1] - start, 0)
    width = int(length.max())
    inside = torch.arange(width) < length[..., None]
    at = torch.where(inside, start[..., None] + torch.arange(width), 0)
    level = torch.where(inside, lists.label.values[at].long(), 0)
    # Positives come before all others, padding after; inside each the order is random.
    order = torch.from_numpy(random.random(tuple(at.shape))) - (level > 0).double() + 2.0 * ~inside
    kept = order.argsort(dim=-1)[..., :room]
    dealt = torch.from_numpy(random.random((*shape[:2], room))).argsort(dim=-1)

    def deal(values: Tensor) -> Tensor:
        taken = torch.where(inside, values, PAD).gather(-1, kept)
        taken = torch.nn.functional.pad(taken, (0, room - taken.shape[-1]), value=PAD)
        return taken.gather(-1, dealt).view(shape)

    item, position = lists.item.values[at].long(), lists.position.values[at].long()
    candidates = CandidateSet(deal(item), deal(position))
    return candidates, deal(level)
