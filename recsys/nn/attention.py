"""Multi-head attention of a prefix over itself, and of tail tokens over several key sources."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.nn.mask import causal_visible


def prefix_attention(
    q_BHTd: Tensor,
    k_BHTd: Tensor,
    v_BHTd: Tensor,
    bias: Tensor | None = None,
    visible_BT: Tensor | None = None,
) -> Tensor:
    """Attention of the prefix over itself: causal, unless told what all its tokens may see.

    Rows are padded on the right, so in causal attention no real token ever sees padding and no
    padding mask is needed.

    Args:
        q_BHTd: Queries, (B, H, T, d).
        k_BHTd: Keys.
        v_BHTd: Values.
        bias: Added to the logits, broadcast to (B, H, T, T); None for none.
        visible_BT: Keys that every token may see, later ones too; None for causal attention.

    Returns:
        (B, H, T, d).
    """
    if visible_BT is not None:
        mask = visible_BT[:, None, None, :]
        return F.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd, attn_mask=mask)
    if bias is None:
        return F.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd, is_causal=True)
    visible = causal_visible(q_BHTd.shape[-2], bias.device)
    return F.scaled_dot_product_attention(
        q_BHTd, k_BHTd, v_BHTd, attn_mask=bias.masked_fill(~visible, -math.inf)
    )


@dataclass(frozen=True, slots=True)
class Source:
    """Keys and values that tail tokens look at, shared by equal shares of the tails of a row.

    With L tails and R rows of keys, tails ``i * L / R`` … look at keys ``i``: the prefix has one
    row of keys for all, a request's own tail one for all its candidate groups, a group its own.
    """

    k: Tensor
    """(B, R, H, J, d)."""
    v: Tensor
    visible: Tensor | None = None
    """Which keys may be seen, broadcast to (B, L, J), True = may attend; None for all."""
    bias: Tensor | None = None
    """Added to the logits, broadcast to (B, L, H, M, J)."""

    def logits(self, q_BLHMd: Tensor) -> Tensor:
        """Logits of every tail's tokens on these keys, (B, L, H, M, J)."""
        B, L, H, M, d = q_BLHMd.shape
        R, J = self.k.shape[1], self.k.shape[3]
        q = q_BLHMd.reshape(B, R, L // R, H, M, d).transpose(2, 3).reshape(B, R, H, L // R * M, d)
        logits = (q @ self.k.mT).view(B, R, H, L // R, M, J).transpose(2, 3).reshape(B, L, H, M, J)
        if self.bias is not None:
            logits = logits + self.bias
        if self.visible is not None:
            logits = logits.masked_fill(~self.visible[:, :, None, None, :], -math.inf)
        return logits

    def gather(self, weight_BLHMJ: Tensor) -> Tensor:
        """Weighted sum of these values, (B, L, H, M, d)."""
        B, L, H, M, J = weight_BLHMJ.shape
        R, d = self.v.shape[1], self.v.shape[4]
        weight = weight_BLHMJ.reshape(B, R, L // R, H, M, J).transpose(2, 3)
        found = weight.reshape(B, R, H, L // R * M, J) @ self.v
        return found.view(B, R, H, L // R, M, d).transpose(2, 3).reshape(B, L, H, M, d)


def tail_attention(q_BLHMd: Tensor, sources: Sequence[Source]) -> Tensor:
    """Attention of tail tokens over several key sources under one softmax.

    Keys that tails share are never copied, and nothing of size (prefix + tails)² is ever made.

    Args:
        q_BLHMd: Queries of the M tokens of each tail's block, (B, L, H, M, d).
        sources: What they look at; every token must see at least one key.

    Returns:
        (B, L, H, M, d).
    """
    q_BLHMd = q_BLHMd * q_BLHMd.shape[-1] ** -0.5
    weight = torch.cat([source.logits(q_BLHMd) for source in sources], dim=-1).softmax(dim=-1)
    parts = torch.split(weight, [source.k.shape[3] for source in sources], dim=-1)
    found = [source.gather(part) for source, part in zip(sources, parts, strict=True)]
    return sum(found[1:], found[0])
