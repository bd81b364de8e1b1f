"""The ranking stage: candidates of a group as one reasoning block over the request's own tail.

```
C_0 = decoder(candidates | prefix, anchors, situation, retrieval's steps)     M = C tokens a group
C_k = decoder(C_{k-1} + E_step[k] | the same, C_0 … C_{k-1})
logit of task s = MLP_s(C_k at the task's step) + a_s · score of the last retrieval head + b_s
```
Candidates have no positions and groups never see each other, so a candidate's logit depends on its
group alone and permuting a group permutes its logits. The MLPs start at zero: an untrained ranking
is the retrieval's own order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recsys.batch import CandidateSet
from recsys.model.config import EncoderConfig, RankerConfig
from recsys.model.encoder import make_layers
from recsys.model.tokens import CandidateTokens
from recsys.nn.tail import Tail
from recsys.types import PAD


@dataclass(frozen=True, slots=True)
class RankOutput:
    """Logits of candidates."""

    logits: Tensor
    """(B, Q, G, C, S): task by task, each of its own step."""
    early: tuple[Tensor, ...]
    """The weakest task's logits at the steps before any task's own, (B, Q, G, C) each: supervised
    too, because steps that nobody supervises collapse."""

    def view(self, shape: Sequence[int]) -> "RankOutput":
        """The same in other groups, (B, Q, G, C)."""
        early = tuple(logits.view(*shape) for logits in self.early)
        return RankOutput(self.logits.view(*shape, -1), early)

    @staticmethod
    def together(parts: Sequence["RankOutput"]) -> "RankOutput":
        """Groups one after the other."""
        early = zip(*(part.early for part in parts), strict=True)
        return RankOutput(
            torch.cat([part.logits for part in parts], dim=2),
            tuple(torch.cat(step, dim=2) for step in early),
        )


def task_steps(num_steps: int, num_tasks: int, *, progressive: bool) -> tuple[int, ...]:
    """The step that answers each task, weakest task first; the last step answers the last task.

    Example:
        >>> task_steps(3, 3, progressive=True), task_steps(3, 3, progressive=False)
        ((1, 2, 3), (3, 3, 3))
        >>> task_steps(1, 3, progressive=True), task_steps(0, 2, progressive=True)
        ((0, 0, 1), (0, 0))
    """
    if not progressive:
        return (num_steps,) * num_tasks
    return tuple(max(0, num_steps - num_tasks + 1 + task) for task in range(num_tasks))


class Ranker(nn.Module):
    """Turns candidates into logits, one a task.

    Source:
        Dai et al., "OnePiece", 2509.18091, §3.3 and eq. 18; the start from the retrieval's score
        is ours.
    """

    def __init__(self, config: RankerConfig, encoder: EncoderConfig, num_tasks: int) -> None:
        super().__init__()
        self.config, width = config, encoder.width
        self.num_steps = num_tasks if config.num_steps is None else config.num_steps
        self.task_steps = task_steps(self.num_steps, num_tasks, progressive=config.progressive)
        count = config.num_layers if config.decoder == "own" else 0
        self.layers = make_layers(encoder, count, zero_init=True)
        self.tokens = CandidateTokens(
            encoder, use_position=config.use_position, use_match=config.read_score
        )
        self.step = nn.Parameter(torch.randn(self.num_steps, width) * encoder.init_std)
        self.step.requires_grad_(config.step_embedding)
        self.heads = nn.ModuleList(_task_head(width) for _ in range(num_tasks))
        # Inner products have no scale of their own: running statistics give them one.
        self.score_norm = nn.BatchNorm1d(1, affine=False)
        self.score_weight = nn.Parameter(torch.full((num_tasks,), float(config.read_score)))
        self.score_weight.requires_grad_(config.read_score)
        self.bias = nn.Parameter(torch.zeros(num_tasks))

    def forward(
        self, candidates: CandidateSet, block: Tensor, tail: Tail, start: Tensor, score: Tensor
    ) -> RankOutput:
        """Rank the candidates of every request.

        Args:
            candidates: (B, Q, G, C).
            block: C_0, what the decoder made of them, (B, Q * G, C, D).
            tail: Of the groups; holds C_0 and grows by K blocks.
            start: Position that all candidates of a request have, (B, Q) int64.
            score: The retrieval's score of each candidate, (B, Q, G, C).

        Returns:
            Logits; those of padding mean nothing.
        """
        B, Q, G, C = candidates.item.shape
        x, valid = block, (candidates.item != PAD).view(B, Q * G, C)
        at = start.repeat_interleave(G, dim=1)[..., None].expand(-1, -1, C)
        answers: list[Tensor] = []
        early: list[Tensor] = []
        for k in range(self.num_steps + 1):
            if k:
                x = x + self.step[k - 1] if self.config.step_embedding else x
                x = tail.append(x, at + k, valid)
            tasks = [task for task, step in enumerate(self.task_steps) if step == k]
            answers += [self.heads[task](x).view(B, Q, G, C) for task in tasks]
            if 0 < k < self.task_steps[0]:
                early.append(self.heads[0](x).view(B, Q, G, C))
        base = self._normalise(score, candidates.item != PAD)[..., None] * self.score_weight
        offset = base + self.bias
        return RankOutput(
            torch.stack(answers, dim=-1) + offset, tuple(e + offset[..., 0] for e in early)
        )

    def _normalise(self, score: Tensor, real: Tensor) -> Tensor:
        """Scores with running mean 0 and variance 1; padding is 0."""
        kept = score[real][:, None].to(self.bias.dtype)
        if len(kept) > 1 or not self.training:  # one number has no variance
            kept = self.score_norm(kept)
        out = torch.zeros(score.shape, dtype=kept.dtype, device=score.device)
        out[real] = kept[:, 0]
        return out


def _task_head(width: int) -> nn.Sequential:
    head = nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)
    )
    for parameter in head[-1].parameters():
        nn.init.zeros_(parameter)
    return head
