"""User-to-item and item-to-user contrast between the requests of a batch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def user_to_item_loss(
    query: Tensor, items: Tensor, item_id: Tensor, *, temperature: float = 0.1
) -> Tensor:
    """Each query against the positives of all others: the item must fit this user.

    Args:
        query: Query vectors, (n, D).
        items: Vector of each query's positive item, (n, D).
        item_id: Internal id of each positive, (n,) int64. Columns that repeat a query's own
            positive are left out.
        temperature: η. Above 0.

    Returns:
        Mean over queries in nats, a float32 scalar; 0 for no queries.

    Source:
        OnePiece (2509.18091), equation 14, with the batch's positives as the candidate pool.

    Example:
        >>> same = torch.zeros(3, 2)
        >>> print(f"{user_to_item_loss(same, same, torch.tensor([4, 5, 5])):.4f}")  # logs 3, 2, 2
        0.8283
    """
    return _in_batch(query @ items.T, item_id[:, None] == item_id, temperature)


def item_to_user_loss(
    query: Tensor, items: Tensor, item_id: Tensor, user: Tensor, *, temperature: float = 0.1
) -> Tensor:
    """Each positive item against the queries of all others: the user must fit this item.

    Args:
        query: Query vectors, (n, D).
        items: Vector of each query's positive item, (n, D).
        item_id: Internal id of each positive, (n,) int64. Queries with the same positive are left
            out of each other's sum.
        user: Any integer key of the user behind each query, (n,). Other requests of the same user
            are left out: they are nearly the same query, not negatives.
        temperature: η. Above 0.

    Returns:
        Mean over positives in nats, a float32 scalar; 0 for no queries.

    Source:
        OnePiece (2509.18091), equation 15; the masks are ours.
    """
    repeat = (item_id[:, None] == item_id) | (user[:, None] == user)
    return _in_batch(items @ query.T, repeat, temperature)


def _in_batch(scores: Tensor, repeat: Tensor, temperature: float) -> Tensor:
    if temperature <= 0:
        raise ValueError(f"temperature ({temperature}) must be above 0.")
    if len(scores) == 0:
        return scores.sum()
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    logits = (scores.float() / temperature).masked_fill(repeat & ~own, -math.inf)
    return F.cross_entropy(logits, torch.arange(len(scores), device=scores.device))
