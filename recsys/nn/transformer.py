"""The pre-norm Transformer layer, over a prefix or over the tails of its requests, with a cache.

The same weights serve both passes. `prefix` reads the history once, causally, and returns the keys
and values it made; `tail` adds one block of tokens a request, which sees the cached prefix up to
the cut of the request and the cached blocks of its own tail. Gradients flow through the cache.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.nn.attention import prefix_attention, tail_attention
from recsys.nn.dropout import Dropout
from recsys.nn.feed_forward import GatedFeedForward
from recsys.nn.rotary import rotary_turns, rotate

KeysValues = tuple[Tensor, Tensor]


@dataclass(slots=True)
class LayerCache:
    """Keys and values of one layer: of the prefix, and of the tail blocks so far."""

    prefix: KeysValues
    """(B, H, T, d) each."""
    tail: list[KeysValues] = field(default_factory=list)
    """One entry a block, (B, Q, H, M, d) each."""

    def fork(self) -> "LayerCache":
        """A cache that shares the keys and values but grows on its own."""
        return LayerCache(self.prefix, list(self.tail))


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

    def _project(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of (*, L, D) as (*, H, L, d).

        ``position`` is broadcast to (*, L); a prefix passes (L,), the same for every row.
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

    def prefix(self, x_BTD: Tensor, bias: Tensor | None = None) -> tuple[Tensor, LayerCache]:
        """Read the whole prefix causally.

        Args:
            x_BTD: (B, T, D), padded on the right.
            bias: Attention bias, broadcast to (B, H, T, T).

        Returns:
            The layer's output (B, T, D) and a cache of its keys and values.
        """
        position = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        q, k, v = self._project(x_BTD, position)
        return self._finish(x_BTD, prefix_attention(q, k, v, bias)), LayerCache((k, v))

    def cache_prefix(self, x_BTD: Tensor) -> LayerCache:
        """Keys and values of hidden states that other layers made, (B, T, D)."""
        heads = F.linear(self.attention_norm(x_BTD), self.qkv.weight[x_BTD.shape[-1] :])
        k, v = heads.view(*heads.shape[:-1], 2, self.num_heads, -1).unbind(-3)
        if self.rotary:
            position = torch.arange(x_BTD.shape[1], device=x_BTD.device)
            k = rotate(k, rotary_turns(position, k.shape[-1])[:, None, :])
        return LayerCache((k.transpose(1, 2), v.transpose(1, 2)))

    def tail(
        self,
        x_BQMD: Tensor,
        cache: LayerCache,
        position_BQM: Tensor,
        visible_BQT: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Read one new block of every request and append it to the cache.

        Args:
            x_BQMD: The block, (B, Q, M, D).
            cache: Of this layer; the block's keys and values are appended.
            position_BQM: Positions of the block's tokens, int64.
            visible_BQT: Which prefix tokens a request may see.
            bias: Attention bias on the prefix, broadcast to (B, Q, H, M, T).

        Returns:
            The layer's output, (B, Q, M, D).
        """
        q, k, v = self._project(x_BQMD, position_BQM)
        cache.tail.append((k, v))
        own = (
            torch.cat([block[0] for block in cache.tail], dim=-2),
            torch.cat([block[1] for block in cache.tail], dim=-2),
        )
        return self._finish(x_BQMD, tail_attention(q, cache.prefix, own, visible_BQT, bias))
