"""The optimizer and learning-rate schedule that the modules share: AdamW, warm-up, cosine or constant."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from pangu_modules.config import Config


class OptimizerConfig(Config):
    """AdamW with decay on matrices only, linear warm-up, then a cosine or a constant learning rate."""

    lr: PositiveFloat = Field(5e-4, description="Peak learning rate.")
    weight_decay: NonNegativeFloat = Field(0.05, description="Decoupled weight decay of parameters with 2+ dimensions.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's decay rates of the two moments.")
    eps: PositiveFloat = Field(1e-8, description="AdamW's term in the denominator.")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="Learning rate after the warm-up.")
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="Share of all optimizer steps spent warming up.")
    final_lr_fraction: float = Field(0.0, ge=0, le=1, description="Last learning rate as a share of the peak.")


def parameter_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters into decayed ones (matrices and larger) and others (biases, norms, scales)."""
    trainable = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    decayed = [parameter for parameter in trainable if parameter.ndim >= 2]
    others = [parameter for parameter in trainable if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def lr_factor(config: OptimizerConfig, total_steps: int) -> Callable[[int], float]:
    """Return the learning rate as a share of its peak, a pure function of the optimizer step (0-based)."""
    warmup = math.ceil(config.warmup_fraction * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if config.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return config.final_lr_fraction + (1 - config.final_lr_fraction) * cosine

    return factor


def build_optimizer(module: nn.Module, config: OptimizerConfig, total_steps: int) -> tuple[torch.optim.AdamW, LambdaLR]:
    """Return AdamW over the trainable parameters of `module` and its schedule, stepped once per optimizer step.

    Raises:
        ValueError: no parameter is trainable, or the number of steps is unknown.
    """
    groups = parameter_groups(module.named_parameters(), config.weight_decay)
    if not groups:
        raise ValueError("no parameter of the module is trainable: nothing to optimise")
    if total_steps <= 0 or math.isinf(total_steps):
        raise ValueError("the number of training steps is unknown: set trainer.max_steps or trainer.max_epochs")
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    return optimizer, LambdaLR(optimizer, lr_factor(config, int(total_steps)))
