"""A learned attention bias by how far apart two tokens are, in positions and in time."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def log_bucket(distance: Tensor, num_buckets: int) -> Tensor:
    """Bucket distances by powers of two.

    Args:
        distance: Any integers; negative ones count as 0.
        num_buckets: The last bucket takes everything beyond.

    Returns:
        ``floor(log2(distance + 1))``, at most ``num_buckets - 1``, int64.

    Example:
        >>> log_bucket(torch.tensor([0, 1, 2, 3, 7, 10**9]), 8).tolist()
        [0, 1, 1, 2, 3, 7]
    """
    return (distance.clamp(min=0).double() + 1).log2().long().clamp(max=num_buckets - 1)


class RelativeBias(nn.Module):
    """One number a head for each bucket of distance in positions and of distance in time.

    Args:
        num_heads: H.
        max_distance: Positions told apart exactly; farther ones share the last number.
        num_time_buckets: Powers of two of seconds; 0 reads no times.

    Source:
        Zhai et al., "Actions speak louder than words" (HSTU), 2024.
    """

    def __init__(self, num_heads: int, max_distance: int, num_time_buckets: int = 0) -> None:
        super().__init__()
        self.max_distance, self.num_time_buckets = max_distance, num_time_buckets
        self.by_distance = nn.Parameter(torch.zeros(max_distance + 1, num_heads))
        self.by_time = nn.Parameter(torch.zeros(max(1, num_time_buckets), num_heads))

    def forward(
        self, query_at: Tensor, key_at: Tensor, query_time: Tensor, key_time: Tensor
    ) -> Tensor:
        """The bias of every pair of tokens.

        Args:
            query_at: Positions of the queries, (B, L) int64.
            key_at: Positions of the keys, (B, T) int64.
            query_time: Seconds since 1970 of the queries, (B, L) int64.
            key_time: Of the keys, (B, T) int64.

        Returns:
            (B, H, L, T) float32.
        """
        distance = (query_at[:, :, None] - key_at[:, None, :]).clamp(0, self.max_distance)
        bias = F.embedding(distance, self.by_distance)
        if self.num_time_buckets:
            apart = query_time[:, :, None] - key_time[:, None, :]
            bias = bias + F.embedding(log_bucket(apart, self.num_time_buckets), self.by_time)
        return bias.permute(0, 3, 1, 2)
