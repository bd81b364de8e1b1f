"""Losses over groups of candidates: each candidate's own label, and the order inside a group."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def candidate_loss(logits: Tensor, positive: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy of every candidate.

    Args:
        logits: (..., C).
        positive: Labels of the same shape, bool.
        valid: False for padding, same shape.

    Returns:
        Mean over candidates in nats, a float32 scalar; 0 for none.

    Source:
        OnePiece (2509.18091), equation 18, as a mean.

    Example:
        >>> yes = torch.tensor([[True, False]])
        >>> print(f"{candidate_loss(torch.zeros(1, 2), yes, torch.ones_like(yes)):.4f}")  # log 2
        0.6931
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), positive.float(), reduction="none")
    return (losses * valid).sum() / valid.sum().clamp(min=1)


def set_contrastive_loss(
    logits: Tensor, positive: Tensor, valid: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Each positive against its whole group, itself and the other positives included.

    Args:
        logits: (..., C).
        positive: Labels of the same shape, bool.
        valid: False for padding, same shape.
        temperature: η. Above 0.

    Returns:
        Mean over positives in nats, a float32 scalar; 0 where no group has one.

    Raises:
        ValueError: If ``temperature`` is not above 0.

    Source:
        OnePiece (2509.18091), equation 19; a group without a positive gives no term.

    Example:
        >>> yes = torch.tensor([[True, False], [False, False]])
        >>> print(f"{set_contrastive_loss(torch.zeros(2, 2), yes, torch.ones_like(yes)):.4f}")
        0.6931
    """
    if temperature <= 0:
        raise ValueError(f"temperature ({temperature}) must be above 0.")
    scaled = (logits.float() / temperature).masked_fill(~valid, -math.inf)
    shared = scaled.logsumexp(dim=-1, keepdim=True)
    counted = positive & valid
    losses = torch.where(counted, shared - scaled.masked_fill(~valid, 0.0), 0.0)
    return losses.sum() / counted.sum().clamp(min=1)
