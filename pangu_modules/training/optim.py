"""The optimizer and learning-rate schedule that the modules share: AdamW, warm-up, cosine or constant."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from pangu_modules.common.config import Config

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """AdamW with decay on matrices and larger, linear warm-up, then a cosine or a constant learning rate."""

    renamed = {"warmup_fraction": "warmup_share", "final_lr_fraction": "final_lr_share"}

    lr: PositiveFloat = Field(5e-4, description="Peak learning rate.")
    weight_decay: NonNegativeFloat = Field(0.05, description="Decoupled weight decay of parameters with 2+ dimensions.")
    respect_no_weight_decay: bool = Field(
        True,
        description="Leave out of the decay what a model's no_weight_decay() names, too: in timm, position embeddings "
        "and class tokens.",
    )
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="AdamW's decay rates of the two moments.")
    eps: PositiveFloat = Field(1e-8, description="AdamW's term in the denominator.")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="Learning rate after the warm-up.")
    warmup_share: float = Field(0.05, ge=0, lt=1, description="Share of all optimizer steps spent warming up.")
    final_lr_share: float = Field(0.0, ge=0, le=1, description="Last learning rate as a share of the peak.")


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    lr_scales: Mapping[str, float] | None = None,
    undecayed: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Split trainable parameters into decayed ones (matrices and larger) and others (biases, norms, scales).

    Args:
        named_parameters: the parameters by name; frozen ones are left out.
        weight_decay: of the decayed groups.
        lr_scales: learning rate as a multiple of the others', by parameter name; 1 for names left out. Each value gets
            groups of its own, with the key ``lr_scale``.
        undecayed: names, or patterns of names, of matrices that do not decay either.
    """
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            exempt = any(fnmatchcase(name, pattern) for pattern in undecayed)
            decayed, scale = parameter.ndim >= 2 and not exempt, (lr_scales or {}).get(name, 1.0)
            empty = {"params": [], "weight_decay": weight_decay if decayed else 0.0, "lr_scale": scale}
            groups.setdefault((not decayed, scale), empty)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def exempt_parameters(module: nn.Module) -> list[str]:
    """Return the names (or patterns) that models inside `module` name in ``no_weight_decay()``, as timm's models do."""
    names = []
    for prefix, part in module.named_modules():
        if callable(getattr(part, "no_weight_decay", None)):
            names += [f"{prefix}.{name}" if prefix else name for name in sorted(part.no_weight_decay())]
    return names


def lr_factor(config: OptimizerConfig, total_steps: int) -> Callable[[int], float]:
    """Return the learning rate as a share of its peak, a pure function of the optimizer step (0-based)."""
    warmup = math.ceil(config.warmup_share * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if config.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return config.final_lr_share + (1 - config.final_lr_share) * cosine

    return factor


def build_optimizer(
    module: nn.Module, config: OptimizerConfig, total_steps: float, lr_scales: Mapping[str, float] | None = None
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """Return AdamW over the trainable parameters of `module` and its schedule, stepped once per optimizer step.

    Args:
        module: what is trained.
        config: optimizer and schedule.
        total_steps: optimizer steps of the whole run; infinite where nobody said when it ends.
        lr_scales: learning rate as a multiple of ``config.lr``, by parameter name; 1 for names left out.

    Raises:
        ValueError: no parameter is trainable, or the number of steps is unknown.
    """
    undecayed = exempt_parameters(module) if config.respect_no_weight_decay else ()
    groups = parameter_groups(module.named_parameters(), config.weight_decay, lr_scales, undecayed)
    if not groups:
        raise ValueError("no parameter of the module is trainable: nothing to optimise")
    if total_steps <= 0 or math.isinf(total_steps):
        raise ValueError("the number of training steps is unknown: set trainer.max_steps or trainer.max_epochs")
    for group in groups:
        group["lr"] = config.lr * group.pop("lr_scale")
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    return optimizer, LambdaLR(optimizer, lr_factor(config, int(total_steps)))
