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

import torch
from torch import Tensor, nn

from recsys.model.config import EncoderConfig, ReasonerConfig
from recsys.model.encoder import make_layers
from recsys.nn.tail import Tail


class Reasoner(nn.Module):
    """Turns a request's base block into B_0, B_1, … B_K."""

    def __init__(self, config: ReasonerConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width, steps = encoder.width, config.num_steps
        count = config.num_layers if config.decoder == "own" else 0
        self.layers = make_layers(encoder, count, zero_init=config.zero_init)
        self.step = nn.Parameter(torch.randn(steps, width) * encoder.init_std)
        self.step.requires_grad_(config.step_embedding)
        rank = config.step_rank
        self.down = nn.Parameter(torch.randn(steps, width, rank) * width**-0.5)
        self.up = nn.Parameter(torch.zeros(steps, rank, width))
        self.log_scale = nn.Parameter(torch.zeros(steps)) if config.norm_rescale else None
        # A gate of -2 lets an eighth of the new state in at first.
        self.gate = nn.Parameter(torch.full((steps, width), -2.0)) if config.gated else None

    def forward(
        self, block_BQMD: Tensor, tail: Tail, cut_BQ: Tensor, item_norm: Tensor
    ) -> tuple[Tensor, ...]:
        """Reason about every request of a batch.

        Args:
            block_BQMD: B_0, what the decoder made of the base tokens.
            tail: Holds the base block; grows by K blocks.
            cut_BQ: Tokens each request may see; positions count from there.
            item_norm: Mean norm of an item vector, a scalar, for the norm rescale.

        Returns:
            B_0 … B_K, (B, Q, M, D) each.
        """
        M = block_BQMD.shape[2]
        at = cut_BQ[..., None] + torch.arange(M, device=cut_BQ.device)
        blocks = [block_BQMD]
        for k in range(self.config.num_steps):
            x = tail.append(self._between(blocks[-1], k, item_norm), at + (k + 1) * M)
            if self.gate is not None:
                x = blocks[-1] + self.gate[k].sigmoid() * (x - blocks[-1])
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
