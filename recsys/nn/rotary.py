"""Rotary positions: a query and a key see how far apart they are, not where they are."""

import torch
from torch import Tensor


def rotary_angles(
    position: Tensor, head_width: int, base: float = 10_000.0
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles.

    Args:
        position: Token positions, any shape, int64.
        head_width: Width of one attention head, even.
        base: The slowest angle turns once in about ``2 π · base`` positions.

    Returns:
        Cosine and sine, each ``(*position.shape, head_width / 2)`` float32.

    Raises:
        ValueError: If ``head_width`` is odd.

    Source:
        Su et al., "RoFormer", 2021; halves are paired rather than neighbours.
    """
    if head_width % 2:
        raise ValueError(f"head_width ({head_width}) must be even for rotary positions.")
    exponent = torch.arange(0, head_width, 2, device=position.device) / head_width
    angle = position[..., None].float() * base**-exponent
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair of a head by its position's angle.

    Args:
        x: Queries or keys, ``(..., head_width)``.
        cosine: From ``rotary_angles``, broadcast against the halves of ``x``.
        sine: Likewise.

    Returns:
        The rotated vectors, in the type of ``x``.
    """
    first, second = x.chunk(2, dim=-1)
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
