"""The compact backbone: pre-norm Transformer layers over the prefix and over tails."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from recsys.batch import History, Requests
from recsys.model.config import EncoderConfig
from recsys.nn.mask import prefix_visible
from recsys.nn.relative_bias import RelativeBias
from recsys.nn.tail import CachedTail
from recsys.nn.transformer import KeysValues, TransformerLayer
from recsys.types import NUM_GAPS


@dataclass(slots=True)
class PrefixState:
    """The prefix as read: what every request, step, candidate group and stage reuses."""

    hidden: Tensor
    """Last hidden states, (B, T, D)."""
    cache: list[KeysValues]
    """Keys and values of every layer."""
    history: History
    visible: Tensor | None = None
    """Which of it tails may see, (B, T); None where their cuts say so."""

    def detach(self) -> "PrefixState":
        """The same without gradients."""
        cache = [(k.detach(), v.detach()) for k, v in self.cache]
        return PrefixState(self.hidden.detach(), cache, self.history, self.visible)


class Encoder(nn.Module):
    """L layers, shared by the prefix and by every tail block."""

    def __init__(self, config: EncoderConfig, *, has_time: bool) -> None:
        super().__init__()
        self.layers = make_layers(config, config.num_layers)
        self.bias: RelativeBias | None = (
            RelativeBias(config.num_heads, config.max_history, NUM_GAPS if has_time else 0)
            if config.relative_bias
            else None
        )

    @property
    def stack(self) -> list[TransformerLayer]:
        """The layers, first to last."""
        return as_layers(self.layers)

    def prefix(self, x_BTD: Tensor, history: History) -> PrefixState:
        """Read the history once, causally.

        Args:
            x_BTD: Token embeddings, padded on the right.
            history: The events, for their times.

        Returns:
            Last hidden states and the cache.
        """
        bias, cache = self._prefix_bias(x_BTD, history), []
        for layer in self.stack:
            x_BTD, kept = layer.prefix(x_BTD, bias)
            cache.append(kept)
        return PrefixState(x_BTD, cache, history)

    def full(
        self, x_BLD: Tensor, position_BL: Tensor, visible_BL: Tensor, history: History
    ) -> PrefixState:
        """Read the history and a request's own tokens as one sequence without order of sight.

        Args:
            x_BLD: Token embeddings.
            position_BL: Their positions, int64.
            visible_BL: Which of them all may see.
            history: The events.

        Returns:
            Last hidden states and the cache, for the reasoning blocks that follow.
        """
        cache = []
        for layer in self.stack:
            x_BLD, kept = layer.full(x_BLD, position_BL, visible_BL)
            cache.append(kept)
        return PrefixState(x_BLD, cache, history, visible_BL)

    def prefix_at(self, x_BTD: Tensor, history: History, cut: Tensor) -> Tensor:
        """Read the history, but only for the last token each request may see, (B, Q, D).

        The last layer then computes Q positions instead of T. Zero where a request sees nothing.
        """
        if self.bias is not None:
            return state_at(self.prefix(x_BTD, history).hidden, cut)
        *first, last = self.stack
        for layer in first:
            x_BTD, _ = layer.prefix(x_BTD)
        return last.prefix_at(x_BTD, cut) * (cut > 0)[..., None]

    def _prefix_bias(self, x_BTD: Tensor, history: History) -> Tensor | None:
        if self.bias is None:
            return None
        at = torch.arange(x_BTD.shape[1], device=x_BTD.device).expand(x_BTD.shape[:2])
        return self.bias(at, at, history.timestamp, history.timestamp)  # type: ignore[no-any-return]

    def open_tail(
        self, prefix: PrefixState, requests: Requests, layers: nn.ModuleList | None = None
    ) -> CachedTail:
        """Open the tails of requests over a prefix.

        Args:
            prefix: As read; detached where the tails must not train it.
            requests: Their cuts say what each may see.
            layers: A decoder's own layers, whose keys are made of the prefix's last hidden states;
                None for the backbone's layers and their own cache.

        Returns:
            Empty tails.
        """
        own = self.stack if layers is None else as_layers(layers)
        cache = prefix.cache
        if layers is not None:
            cache = [layer.cache_prefix(prefix.hidden) for layer in own]
        visible = prefix_visible(requests.cut, prefix.hidden.shape[1])
        if prefix.visible is not None:
            visible = prefix.visible[:, None]
        bias = self._tail_bias(prefix.history, requests.cut, requests.timestamp)
        if bias is not None and not prefix.hidden.requires_grad:
            bias = bias.detach()
        return CachedTail(own, cache, visible, bias)

    def _tail_bias(self, history: History, cut: Tensor, timestamp: Tensor) -> Tensor | None:
        """Relative bias of requests on the prefix, (B, Q, H, 1, T), or None."""
        if self.bias is None:
            return None
        at = torch.arange(history.item.shape[1], device=cut.device).expand(history.item.shape)
        return self.bias(cut, at, timestamp, history.timestamp).transpose(1, 2)[:, :, :, None]  # type: ignore[no-any-return]


def make_layers(config: EncoderConfig, count: int, *, zero_init: bool = False) -> nn.ModuleList:
    """Layers of the backbone's size; with ``zero_init`` each starts as the identity."""
    layers = nn.ModuleList(
        TransformerLayer(
            config.width,
            config.num_heads,
            config.hidden_width,
            config.dropout,
            rotary=config.positions != "learned",
        )
        for _ in range(count)
    )
    if zero_init:
        for layer in as_layers(layers):
            nn.init.zeros_(layer.attention_out.weight)
            nn.init.zeros_(layer.feed_forward.out.weight)
    return layers


def as_layers(layers: nn.ModuleList) -> list[TransformerLayer]:
    """The layers, typed."""
    return [cast(TransformerLayer, layer) for layer in layers]


def state_at(hidden_BTD: Tensor, cut_BQ: Tensor) -> Tensor:
    """Hidden state of the last token each request may see.

    Args:
        hidden_BTD: Hidden states of the prefix.
        cut_BQ: Tokens each request may see, int64.

    Returns:
        (B, Q, D); zero where a request sees nothing.
    """
    last = (cut_BQ - 1).clamp(min=0)
    state = hidden_BTD.gather(1, last[..., None].expand(-1, -1, hidden_BTD.shape[-1]))
    return state * (cut_BQ > 0)[..., None]
