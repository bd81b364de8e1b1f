"""The tails of requests over a shared prefix: append blocks, read their hidden states.

A tail grows block by block. A block sees the prefix up to its request's cut, the earlier blocks of
its own tail, and all of itself (``recsys.nn.mask`` is the rule). `fork` lets every request's tail
go on in several groups that never see each other, as candidate groups do, without copying what
they share.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from recsys.nn.attention import Source
from recsys.nn.transformer import KeysValues, TransformerLayer


class Tail(Protocol):
    """What reasoning and ranking need of a backbone: one more block, and forks."""

    def append(
        self, x_BLMD: Tensor, position_BLM: Tensor, valid_BLM: Tensor | None = None, skip: int = 0
    ) -> Tensor:
        """Run one more block of every tail through all layers.

        Args:
            x_BLMD: The block, (B, L, M, D).
            position_BLM: Positions of its tokens, int64.
            valid_BLM: False for tokens that nobody may attend to; None for none.
            skip: Tokens at the front whose output is not wanted; later blocks see them all the
                same.

        Returns:
            Hidden states of the others, (B, L, M - skip, D).
        """
        ...

    def fork(self, num_groups: int) -> "Tail":
        """Let every tail go on in ``num_groups`` groups that do not see each other.

        Returns:
            A tail of L * num_groups rows, request-major; this one stays as it is.
        """
        ...


class CachedTail:
    """Tails over the keys and values that each layer keeps.

    Args:
        layers: First to last.
        prefix: Keys and values of the prefix in each layer, (B, H, T, d).
        visible_BQT: Which prefix tokens a request may see.
        bias: Attention bias on the prefix, broadcast to (B, Q, H, 1, T); None for none.
    """

    def __init__(
        self,
        layers: Sequence[TransformerLayer],
        prefix: Sequence[KeysValues],
        visible_BQT: Tensor,
        bias: Tensor | None = None,
    ) -> None:
        self.layers = layers
        self._sources = [[Source(k[:, None], v[:, None], visible_BQT, bias)] for k, v in prefix]

    def append(
        self, x_BLMD: Tensor, position_BLM: Tensor, valid_BLM: Tensor | None = None, skip: int = 0
    ) -> Tensor:
        """Run one more block of every tail through all layers, see ``Tail``."""
        last = len(self.layers) - 1
        for number, (layer, sources) in enumerate(zip(self.layers, self._sources, strict=True)):
            q, k, v = layer.project(x_BLMD, position_BLM)
            # Every later block reads them: one copy now instead of one at each reading.
            sources.append(Source(k.contiguous(), v.contiguous(), valid_BLM))
            cut = skip if number == last else 0
            if cut == x_BLMD.shape[2]:
                return x_BLMD[:, :, cut:]
            x_BLMD = layer.tail(x_BLMD[:, :, cut:], q[..., cut:, :], sources)
        return x_BLMD

    def fork(self, num_groups: int) -> "CachedTail":
        """Let every tail go on in groups, see ``Tail``."""
        forked = CachedTail(self.layers, (), torch.empty(0))
        forked._sources = [[_repeat(s, num_groups) for s in sources] for sources in self._sources]
        return forked


def _repeat(source: Source, num_groups: int) -> Source:
    """The same keys for ``num_groups`` times the tails."""
    visible, bias = source.visible, source.bias
    if visible is not None:
        visible = visible.repeat_interleave(num_groups, dim=1)
    if bias is not None:
        bias = bias.repeat_interleave(num_groups, dim=1)
    return Source(source.k, source.v, visible, bias)
