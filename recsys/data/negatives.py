"""Where sampled losses draw their negatives from; each draw comes with its probability."""

from typing import Literal, Protocol

import torch
from torch import Tensor

from recsys.types import FIRST_ID


class NegativeSampler(Protocol):
    """Draws internal item ids, with replacement, from a known distribution."""

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw ``count`` ids, (count,) int64, and the natural log of each one's probability."""
        ...

    def log_q(self, ids: Tensor) -> Tensor:
        """Natural log of the probability that one draw gives each id, same shape, float32."""
        ...


class TableSampler:
    """Draws trained items uniformly, or by a power of their training counts.

    Args:
        train_count: Training events of every internal id, (N,); ids without any are never drawn.
        kind: ``uniform`` over trained items, or ``popularity``: count to the power of ``power``.
        power: 1 draws items as often as they occur, 0 is uniform.

    Raises:
        ValueError: If no item has a training event.
    """

    def __init__(
        self,
        train_count: Tensor,
        kind: Literal["uniform", "popularity"] = "uniform",
        *,
        power: float = 0.75,
    ) -> None:
        count = train_count.double().clone()
        count[:FIRST_ID] = 0
        weight = (count > 0).double() if kind == "uniform" else count**power * (count > 0)
        if not weight.any():
            raise ValueError("train_count has no item with a training event to draw.")
        self._log_q = (weight / weight.sum()).log().float()
        self._cumulative = weight.cumsum(0) / weight.sum()

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw ``count`` ids by torch's generator, by bisection: O(count · log N)."""
        draw = torch.rand(count, dtype=torch.float64)
        ids = torch.searchsorted(self._cumulative, draw, right=True)
        ids = ids.clamp(max=len(self._cumulative) - 1)
        return ids, self._log_q[ids]

    def log_q(self, ids: Tensor) -> Tensor:
        """Natural log of each id's probability; -inf for ids that are never drawn."""
        return self._log_q.to(ids.device)[ids]
