"""The slow, obvious twin of the cached Transformer: one sequence, one mask, one softmax."""

import math

from torch import Tensor

from recsys.nn.rotary import rotary_turns, rotate
from recsys.nn.transformer import TransformerLayer


def dense_layer(
    layer: TransformerLayer, x_LD: Tensor, visible_LL: Tensor, at_L: Tensor, bias_HLL: Tensor
) -> Tensor:
    """Plain softmax attention over one sequence, every pair of tokens scored.

    Args:
        layer: Whose weights to use.
        x_LD: The sequence.
        visible_LL: True = may attend.
        at_L: Position of each token, for rotary angles.
        bias_HLL: Added to the logits.
    """
    L, width = x_LD.shape
    heads = layer.qkv(layer.attention_norm(x_LD)).view(L, 3, layer.num_heads, -1)
    q, k, v = heads.permute(1, 2, 0, 3)
    if layer.rotary:
        turns = rotary_turns(at_L, q.shape[-1])
        q, k = rotate(q.contiguous(), turns), rotate(k.contiguous(), turns)
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias_HLL
    weight = logits.masked_fill(~visible_LL, -math.inf).softmax(-1)
    x_LD = x_LD + layer.attention_out((weight @ v).transpose(0, 1).reshape(L, width))
    return x_LD + layer.feed_forward(layer.feed_forward_norm(x_LD))
