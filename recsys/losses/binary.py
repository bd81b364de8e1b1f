"""Binary cross-entropy of positives and sampled negatives."""

import torch.nn.functional as F
from torch import Tensor


def binary_loss(positive: Tensor, negative: Tensor, valid: Tensor | None = None) -> Tensor:
    """``-log σ(positive) - Σ log(1 - σ(negative))``, averaged over queries.

    Args:
        positive: Logit of each query's positive item, (n,).
        negative: Logits of its negatives, (n, J).
        valid: (n, J) bool; False leaves a negative out (an accidental hit). None keeps all.

    Returns:
        Mean over queries of the sum over items, in nats, a float32 scalar; 0 for no queries.

    Source:
        OnePiece (2509.18091), equation 13, as a mean over queries rather than a sum.

    Example:
        >>> import torch
        >>> print(f"{binary_loss(torch.zeros(1), torch.zeros(1, 2)):.4f}")  # 3 log 2
        2.0794
    """
    if len(positive) == 0:
        return positive.sum()
    losses = F.softplus(negative.float())
    if valid is not None:
        losses = losses * valid
    return (F.softplus(-positive.float()) + losses.sum(dim=-1)).mean()
