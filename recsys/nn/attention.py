"""Multi-head attention over one key source (the prefix) or two (the prefix and the own tail)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.nn.mask import causal_visible


def prefix_attention(
    q_BHTd: Tensor, k_BHTd: Tensor, v_BHTd: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Causal attention of the prefix over itself.

    Rows are padded on the right, so no real token ever sees padding and no padding mask is needed.

    Args:
        q_BHTd: Queries, (B, H, T, d).
        k_BHTd: Keys.
        v_BHTd: Values.
        bias: Added to the logits, broadcast to (B, H, T, T); None for none.

    Returns:
        (B, H, T, d).
    """
    if bias is None:
        return F.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd, is_causal=True)
    visible = causal_visible(q_BHTd.shape[-2], bias.device)
    return F.scaled_dot_product_attention(
        q_BHTd, k_BHTd, v_BHTd, attn_mask=bias.masked_fill(~visible, -math.inf)
    )


def tail_attention(
    q_BQHMd: Tensor,
    prefix: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    visible_BQT: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention of tail tokens over the shared prefix and their own tail, under one softmax.

    The prefix's keys and values are shared by all Q requests of a row, so nothing of size
    (prefix + tails)² and no copy of the prefix is ever made.

    Args:
        q_BQHMd: Queries of the M tokens of each request's block, (B, Q, H, M, d).
        prefix: Keys and values of the prefix, (B, H, T, d) each.
        own: Keys and values of each request's own tail so far, this block included,
            (B, Q, H, J, d) each.
        visible_BQT: Which prefix tokens a request may see, True = may attend.
        bias: Added to the prefix logits, broadcast to (B, Q, H, M, T); None for none.

    Returns:
        (B, Q, H, M, d). A request that sees no prefix token reads its own tail alone.
    """
    B, Q, H, M, d = q_BQHMd.shape
    k_BHTd, v_BHTd = prefix
    k_BQHJd, v_BQHJd = own
    T = k_BHTd.shape[2]
    q_BQHMd = q_BQHMd * d**-0.5
    q_BHLd = q_BQHMd.transpose(1, 2).reshape(B, H, Q * M, d)
    to_prefix = (q_BHLd @ k_BHTd.transpose(-1, -2)).view(B, H, Q, M, T)
    if bias is not None:
        to_prefix = to_prefix + bias.transpose(1, 2)
    to_prefix = to_prefix.masked_fill(~visible_BQT[:, None, :, None, :], -math.inf)
    to_own = (q_BQHMd @ k_BQHJd.transpose(-1, -2)).transpose(1, 2)  # (B, H, Q, M, J)
    weight = torch.cat((to_prefix, to_own), dim=-1).softmax(dim=-1)
    from_prefix = (weight[..., :T].reshape(B, H, Q * M, T) @ v_BHTd).view(B, H, Q, M, d)
    from_own = weight[..., T:].transpose(1, 2) @ v_BQHJd  # (B, Q, H, M, d)
    return from_prefix.transpose(1, 2) + from_own
