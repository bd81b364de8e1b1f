"""Parameter groups and the learning-rate schedule."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW with warm-up and decay."""

    lr: float = 1e-3
    weight_decay: float = 0.0
    """Of matrices; embeddings, norms and biases are never decayed."""
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine"] = "cosine"
    """``cosine`` falls to ``final_lr_fraction`` over the run's planned steps."""
    final_lr_fraction: float = 0.05
    clip_norm: float = 1.0
    """Largest global gradient norm; larger ones are scaled down. 0 switches clipping off."""
    beta2: float = 0.98

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.lr <= 0 or self.weight_decay < 0 or self.warmup_steps < 0 or self.clip_norm < 0:
            raise ValueError(
                f"lr ({self.lr}) must be above 0; weight_decay ({self.weight_decay}), warmup_steps "
                f"({self.warmup_steps}) and clip_norm ({self.clip_norm}) at least 0."
            )
        if not (0 <= self.beta2 < 1 and 0 <= self.final_lr_fraction <= 1):
            raise ValueError(
                f"beta2 ({self.beta2}) must be at least 0 and below 1, final_lr_fraction "
                f"({self.final_lr_fraction}) between 0 and 1."
            )


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that train; only matrices of linear maps decay.

    Args:
        model: Whose parameters to optimise.
        config: Rates.

    Returns:
        The optimizer, fused.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.numel():
            (decayed if id(parameter) in matrices else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)


def lr_factor(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Share of ``config.lr`` at a step: a linear warm-up, then the schedule.

    Args:
        step: Optimizer steps taken so far.
        total_steps: Planned steps of the whole run.
        config: The schedule.

    Returns:
        A factor above 0, at most 1.

    Example:
        >>> config = OptimizerConfig(warmup_steps=10, final_lr_fraction=0.1)
        >>> [round(lr_factor(s, 110, config), 2) for s in (0, 9, 10, 60, 110)]
        [0.1, 1.0, 1.0, 0.55, 0.1]
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    low = config.final_lr_fraction
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))
