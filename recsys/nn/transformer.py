"""The pre-norm Transformer layer, over a prefix or over the tails of its requests, with a cache.

The same weights serve both passes. `prefix` reads the history once, causally, and returns the keys
and values it made; `tail` reads blocks of tokens that look at cached keys. Gradients flow through
the cache.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.nn.attention import Source, prefix_attention, tail_attention
from recsys.nn.dropout import Dropout
from recsys.nn.feed_forward import GatedFeedForward
from recsys.nn.rotary import rotary_turns, rotate

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one layer over the prefix, (B, H, T, d) each."""


class TransformerLayer(nn.Module):
    """``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``.

    Args:
        width: D, a multiple of ``num_heads``.
        num_heads: H.
        hidden: Width inside the feed-forward layer.
        dropout: Probability, on both residual branches and inside the feed-forward layer.
        rotary: Whether queries and keys turn with their positions.

    Raises:
        ValueError: If ``width`` is not a multiple of ``num_heads``.
    """

    def __init__(
        self, width: int, num_heads: int, hidden: int, dropout: float = 0.0, *, rotary: bool = False
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width ({width}) must be a multiple of num_heads ({num_heads}).")
        self.num_heads, self.rotary = num_heads, rotary
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = GatedFeedForward(width, hidden, dropout)
        self.dropout = Dropout(dropout)

    def project(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens.

        Args:
            x: (*, L, D).
            position: Broadcast to (*, L); a prefix passes (L,), the same for every row.

        Returns:
            (*, H, L, d) each.
        """
        heads = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = heads.unbind(-3)  # (*, L, 3, H, d) → three of (*, L, H, d)
        if self.rotary:
            turns = rotary_turns(position, heads.shape[-1])[..., None, None, :]
            q, k = rotate(heads[..., :2, :, :], turns).unbind(-3)
        return q.transpose(-3, -2), k.transpose(-3, -2), v.transpose(-3, -2)

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.dropout(self.attention_out(attended.transpose(-3, -2).flatten(-2)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # type: ignore[no-any-return]

    def full(
        self, x_BTD: Tensor, position_BT: Tensor, visible_BT: Tensor
    ) -> tuple[Tensor, KeysValues]:
        """Read a whole sequence, every token seeing every visible one, as ``prefix`` otherwise."""
        q, k, v = self.project(x_BTD, position_BT)
        attended = prefix_attention(q, k, v, visible_BT=visible_BT)
        return self._finish(x_BTD, attended), (k, v)

    def prefix(self, x_BTD: Tensor, bias: Tensor | None = None) -> tuple[Tensor, KeysValues]:
        """Read the whole prefix causally.

        Args:
            x_BTD: (B, T, D), padded on the right.
            bias: Attention bias, broadcast to (B, H, T, T).

        Returns:
            The layer's output (B, T, D), and its keys and values.
        """
        position = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        q, k, v = self.project(x_BTD, position)
        return self._finish(x_BTD, prefix_attention(q, k, v, bias)), (k, v)

    def cache_prefix(self, x_BTD: Tensor) -> KeysValues:
        """Keys and values of hidden states that other layers made, (B, T, D)."""
        heads = F.linear(self.attention_norm(x_BTD), self.qkv.weight[x_BTD.shape[-1] :])
        k, v = heads.view(*heads.shape[:-1], 2, self.num_heads, -1).unbind(-3)
        if self.rotary:
            position = torch.arange(x_BTD.shape[1], device=x_BTD.device)
            k = rotate(k, rotary_turns(position, k.shape[-1])[:, None, :])
        return k.transpose(1, 2), v.transpose(1, 2)

    def tail(self, x_BLMD: Tensor, q_BLHMd: Tensor, sources: Sequence[Source]) -> Tensor:
        """Read a block of every tail.

        Args:
            x_BLMD: The block's residual stream, (B, L, M, D).
            q_BLHMd: Its queries, of ``project``.
            sources: Keys that its tokens look at, their own included.

        Returns:
            The layer's output, (B, L, M, D).
        """
        return self._finish(x_BLMD, tail_attention(q_BLHMd, sources))

    def prefix_at(self, x_BTD: Tensor, cut_BQ: Tensor) -> Tensor:
        """Read the prefix, but answer only at the last token that each request may see.

        Args:
            x_BTD: (B, T, D), padded on the right.
            cut_BQ: Tokens each request may see, int64.

        Returns:
            What ``prefix`` gives there, (B, Q, D); nothing of use where a request sees nothing.
        """
        k, v = self.cache_prefix(x_BTD)
        at = (cut_BQ - 1).clamp(min=0)
        x = x_BTD.gather(1, at[..., None].expand(-1, -1, x_BTD.shape[-1]))[:, :, None]
        q, _, _ = self.project(x, at[..., None])
        visible = torch.arange(x_BTD.shape[1], device=at.device) <= at[..., None]
        return self.tail(x, q, [Source(k[:, None], v[:, None], visible)])[:, :, 0]
