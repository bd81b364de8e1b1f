"""The compact backbone: pre-norm Transformer layers over the prefix and over tails."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from recsys.batch import History
from recsys.model.config import EncoderConfig
from recsys.nn.relative_bias import RelativeBias
from recsys.nn.transformer import LayerCache, TransformerLayer
from recsys.types import NUM_GAPS


@dataclass(slots=True)
class PrefixState:
    """The prefix as read: what every request, step, candidate group and stage reuses."""

    hidden: Tensor
    """Last hidden states, (B, T, D)."""
    cache: list[LayerCache]
    """Keys and values of every layer."""
    history: History


class Encoder(nn.Module):
    """L layers, shared by the prefix and by every tail block."""

    def __init__(self, config: EncoderConfig, *, has_time: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerLayer(
                config.width,
                config.num_heads,
                config.hidden_width,
                config.dropout,
                rotary=config.positions != "learned",
            )
            for _ in range(config.num_layers)
        )
        self.bias: RelativeBias | None = (
            RelativeBias(config.num_heads, config.max_history, NUM_GAPS if has_time else 0)
            if config.relative_bias
            else None
        )

    @property
    def stack(self) -> list[TransformerLayer]:
        """The layers, first to last."""
        return [cast(TransformerLayer, layer) for layer in self.layers]

    def prefix(self, x_BTD: Tensor, history: History) -> PrefixState:
        """Read the history once, causally.

        Args:
            x_BTD: Token embeddings, padded on the right.
            history: The events, for their times.

        Returns:
            Last hidden states and the cache.
        """
        bias = None
        if self.bias is not None:
            at = torch.arange(x_BTD.shape[1], device=x_BTD.device).expand(x_BTD.shape[:2])
            bias = self.bias(at, at, history.timestamp, history.timestamp)
        cache = []
        for layer in self.stack:
            x_BTD, kept = layer.prefix(x_BTD, bias)
            cache.append(kept)
        return PrefixState(x_BTD, cache, history)

    def tail_bias(self, history: History, cut: Tensor, timestamp: Tensor) -> Tensor | None:
        """Relative bias of requests on the prefix, (B, Q, H, 1, T), or None."""
        if self.bias is None:
            return None
        at = torch.arange(history.item.shape[1], device=cut.device).expand(history.item.shape)
        return self.bias(cut, at, timestamp, history.timestamp).transpose(1, 2)[:, :, :, None]  # type: ignore[no-any-return]
