"""Block-causal latent reasoning: block k reads the prefix and blocks 0 … k.

```
B̃_k = rescale(B_{k-1}) + E_step[k] + correction_k(B_{k-1})
B_k  = decoder(B̃_k | prefix up to the cut, blocks 0 … k-1)          only M new rows a request
```
Two decoders. ``shared`` is OnePiece's: the blocks run through the backbone's own layers and see the
prefix's cached keys and values of every layer. ``own`` is a few layers of the reasoner's, whose
first block starts from the backbone's last hidden state at the cut, and whose keys and values are
made from the backbone's last hidden states.
"""

from typing import cast

import torch
from torch import Tensor, nn

from recsys.batch import Requests
from recsys.model.config import EncoderConfig, ReasonerConfig
from recsys.model.encoder import Encoder, PrefixState
from recsys.nn.mask import prefix_visible
from recsys.nn.transformer import LayerCache, TransformerLayer


class Reasoner(nn.Module):
    """Turns a request's base block B̃_0 into B_0, B_1, … B_K."""

    def __init__(self, config: ReasonerConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width, steps = encoder.width, config.num_steps
        self.layers = nn.ModuleList(
            TransformerLayer(
                width,
                encoder.num_heads,
                encoder.hidden_width,
                encoder.dropout,
                rotary=encoder.positions != "learned",
            )
            for _ in range(config.num_layers if config.decoder == "own" else 0)
        )
        self.step = nn.Parameter(torch.randn(steps, width) * encoder.init_std)
        self.step.requires_grad_(config.step_embedding)
        rank = config.step_rank
        self.down = nn.Parameter(torch.randn(steps, width, rank) * width**-0.5)
        self.up = nn.Parameter(torch.zeros(steps, rank, width))
        self.log_scale = nn.Parameter(torch.zeros(steps)) if config.norm_rescale else None
        # A gate of -2 lets an eighth of the new state in at first.
        self.gate = nn.Parameter(torch.full((steps, width), -2.0)) if config.gated else None
        if config.zero_init:
            for layer in self.layers:
                nn.init.zeros_(layer.attention_out.weight)  # type: ignore[arg-type, union-attr]
                nn.init.zeros_(layer.feed_forward.out.weight)  # type: ignore[arg-type, union-attr]

    def forward(
        self,
        base_BQMD: Tensor,
        prefix: PrefixState,
        requests: Requests,
        encoder: Encoder,
        item_norm: Tensor,
    ) -> tuple[Tensor, ...]:
        """Reason about every request of a batch.

        Args:
            base_BQMD: Embeddings of the base tokens, positions included.
            prefix: The history as the encoder read it.
            requests: Their cuts say what each may see.
            encoder: The backbone, whose layers a shared decoder uses.
            item_norm: Mean norm of an item vector, a scalar, for the norm rescale.

        Returns:
            B_0 … B_K, (B, Q, M, D) each.
        """
        config, cut = self.config, requests.cut
        hidden = prefix.hidden.detach() if config.isolated else prefix.hidden
        visible = prefix_visible(cut, hidden.shape[1])
        bias = encoder.tail_bias(prefix.history, cut, requests.timestamp)
        if config.isolated and bias is not None:
            bias = bias.detach()
        M = base_BQMD.shape[2]
        at = cut[..., None] + torch.arange(M, device=cut.device)
        if config.decoder == "own":
            layers = [cast(TransformerLayer, layer) for layer in self.layers]
            cache = [layer.cache_prefix(hidden) for layer in layers]
            x = base_BQMD + state_at(hidden, cut)[:, :, None, :]
        else:
            layers, x = encoder.stack, base_BQMD
            cache = [kept.fork() for kept in prefix.cache]
            if config.isolated:
                cache = [LayerCache((k.detach(), v.detach())) for k, v in (c.prefix for c in cache)]
        blocks: list[Tensor] = []
        for k in range(config.num_steps + 1):
            if k:
                x = self._between(blocks[-1], k - 1, item_norm)
            for layer, kept in zip(layers, cache, strict=True):
                x = layer.tail(x, kept, at + k * M, visible, bias)
            if k and self.gate is not None:
                x = blocks[-1] + self.gate[k - 1].sigmoid() * (x - blocks[-1])
            blocks.append(x)
        return tuple(blocks)

    def _between(self, block: Tensor, step: int, item_norm: Tensor) -> Tensor:
        """The input of the next step from the output of the last."""
        x = block
        if self.log_scale is not None:
            target = self.log_scale[step].exp() * item_norm.detach()
            x = x * (target / x.norm(dim=-1, keepdim=True).clamp(min=1e-6))
        if self.config.step_rank:
            x = x + (block @ self.down[step]) @ self.up[step]
        return x + self.step[step] if self.config.step_embedding else x


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
