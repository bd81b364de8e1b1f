"""Tiny ``transformers`` decoders and what they read: histories, blocks and candidate groups."""

import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from tiny_world import random_context
from torch import Tensor, nn

from recsys.batch import ContextBatch
from recsys.model.backbone_hf import TransformersEncoder
from recsys.model.config import BackboneConfig
from recsys.model.encoder import PrefixState
from recsys.nn.mask import SHARED, TokenAttributes, may_attend
from recsys.nn.tail import Tail

B, Q, T, M, G, C, D = 2, 2, 5, 2, 2, 3, 16
"""Two requests a row: a block of M tokens, another, then G groups of C candidates, twice."""
LENGTHS, CUTS = (5, 3), ((0, 4), (3, 2))
SETTINGS: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,  # wide, so that every token that is seen shows
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
DECODERS = {
    "qwen3": SETTINGS,
    "projected": {**SETTINGS, "hidden_size": 24},
    "llama": {**SETTINGS, "model_type": "llama"},
    "sliding": {**SETTINGS, "model_type": "mistral", "sliding_window": 2},
    "gpt_neox": {**SETTINGS, "model_type": "gpt_neox", "rotary_pct": 0.5},
    "gpt2": {**SETTINGS, "model_type": "gpt2", "n_positions": 32},
}


def make(
    settings: dict[str, Any] = SETTINGS, *, seed: int = 0, **fields: Any
) -> TransformersEncoder:
    torch.manual_seed(seed)
    source = {} if "source" in fields else {"settings": json.dumps(settings)}
    return TransformersEncoder(BackboneConfig(**{"tune": "full", **source, **fields}), D)


def exact(encoder: TransformersEncoder) -> TransformersEncoder:
    """The same model in float64 throughout; the RMS norms of transformers compute in float32."""
    for parent in list(encoder.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return encoder.double().eval()


@dataclass
class Case:
    """What is read: a history, and four blocks of every request's tail, the last two in groups."""

    prefix: Tensor  # (B, T, D)
    blocks: list[Tensor]  # two of (B, Q, M, D), two of (B, Q * G, C, D)
    real: list[Tensor]  # False where a block's token is padding
    cuts: tuple[tuple[int, ...], ...] = CUTS

    @property
    def context(self) -> ContextBatch:
        return random_context([self.prefix.shape[1]] * len(self.cuts), self.cuts, num_items=9)

    def read(self, encoder: TransformersEncoder) -> PrefixState:
        return encoder.prefix(self.prefix, self.context.history)

    def open(self, encoder: TransformersEncoder) -> Tail:
        return encoder.open_tail(self.read(encoder), self.context.requests)

    def positions(self) -> list[Tensor]:
        """Blocks count on from the cut; all candidates of a group have one position."""
        cut = torch.tensor(self.cuts)
        block = cut[..., None] + torch.arange(M)
        _, rows, size, _ = self.blocks[2].shape
        group = (cut + 2 * M).repeat_interleave(rows // cut.shape[1], dim=1)
        group = group[..., None].expand(-1, -1, size)
        return [block, block + M, group, group + 1]

    def fast(self, encoder: TransformersEncoder) -> list[Tensor]:
        """Block by block, cached and packed."""
        tail, blocks = (
            self.open(encoder),
            zip(self.blocks, self.positions(), self.real, strict=True),
        )
        out = []
        for order, (x, at, real) in enumerate(blocks):
            if order == 2:
                tail = tail.fork(x.shape[1] // len(self.cuts[0]))
            out.append(tail.append(x, at, None if real.all() else real))
        return out

    def dense(self, encoder: TransformersEncoder) -> list[Tensor]:
        """One uncached pass a row over prefix and all tails, under the rule of nn/mask.py."""
        out = [torch.zeros_like(x) for x in self.blocks]
        positions = self.positions()
        for b in range(B):
            homes = [
                (order, i, m)
                for order, x in enumerate(self.blocks)
                for i in range(x.shape[1])
                for m in range(x.shape[2])
            ]
            tokens, rows = [*self.prefix[b]], [(SHARED, t, 0, SHARED, t, 1) for t in range(T)]
            for order, i, m in homes:
                request, group = divmod(i, G) if order >= 2 else (i, SHARED)
                at, real = positions[order][b, i, m], self.real[order][b, i, m]
                tokens.append(self.blocks[order][b, i, m])
                rows.append((request, self.cuts[b][request], order, group, int(at), int(real)))
            *attributes, at, real = torch.tensor(rows).T
            visible = may_attend(TokenAttributes(*attributes), TokenAttributes(*attributes))
            # Padding is of use to nobody, but sees itself and so stays finite.
            visible = visible & real.bool() | torch.eye(len(rows), dtype=torch.bool)
            mask = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -math.inf)
            hidden = encoder.model(
                inputs_embeds=encoder.into(torch.stack(tokens)[None]),
                attention_mask=mask[None, None],
                position_ids=at[None],
                use_cache=False,
            ).last_hidden_state
            for found, (order, i, m) in zip(encoder.out(hidden)[0, T:], homes, strict=True):
                out[order][b, i, m] = found
        return out


def case() -> Case:
    g = torch.Generator().manual_seed(0)
    shapes = [(B, Q, M, D)] * 2 + [(B, Q * G, C, D)] * 2
    prefix, *blocks = [
        torch.randn(shape, generator=g, dtype=torch.float64) for shape in [(B, T, D), *shapes]
    ]
    real = [torch.ones(shape[:3], dtype=torch.bool) for shape in shapes]
    real[0][0, 1, 0] = False
    for group in real[2:]:
        group[0, 0, 2] = group[1, 3, 1] = False
    return Case(prefix, blocks, real)


def assert_equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
