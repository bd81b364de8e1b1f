"""The situation of a request: what its time alone tells."""

import torch
from torch import Tensor

DAY_S = 86_400


def situation(timestamp: Tensor, *, has_time: bool) -> dict[str, Tensor]:
    """Hour and weekday of a moment, in UTC.

    Args:
        timestamp: Seconds since 1970, any shape, int64.
        has_time: False where timestamps are only an order; everything is then unknown (0).

    Returns:
        ``hour`` 1 … 24 and ``weekday`` 1 (Monday) … 7, int64 of the same shape; 0 = unknown.

    Example:
        >>> situation(torch.tensor([0]), has_time=True)  # Thursday, midnight
        {'hour': tensor([1]), 'weekday': tensor([4])}
    """
    if not has_time:
        return {"hour": torch.zeros_like(timestamp), "weekday": torch.zeros_like(timestamp)}
    hour = timestamp % DAY_S // 3600 + 1
    weekday = (timestamp // DAY_S + 3) % 7 + 1
    return {"hour": hour, "weekday": weekday}
