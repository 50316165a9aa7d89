"""The step that a hypergradient looks ahead: learning rate and preconditioner of the trained model's optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pangu_modules.llm.weighting.hypergradient import Precondition


@dataclass(frozen=True)
class NextStep:
    """A gradient step as the optimizer would take it.

    Args:
        lr: the largest learning rate of its groups, times AdamW's share of a new gradient where P uses moments.
        precondition: P of `hypergradient`, which holds the groups' learning rates as shares of `lr`; None for identity.
        uses_moments: whether P comes from AdamW's second moments.
    """

    lr: float
    precondition: Precondition | None
    uses_moments: bool


def next_step(
    optimizer: Optimizer, parameters: Sequence[nn.Parameter], kind: Literal["none", "adam"] = "adam"
) -> NextStep:
    """Return the part of the optimizer's next step on `parameters` that depends on the batch.

    What momentum and weight decay add of old is the same whatever the weights are, and left out. Of the new gradient
    AdamW takes the share ``(1 - beta1) / (1 - beta1^step)``, which is in the learning rate: without it theta' would lie
    ten times as far away as the real step goes, where the target's gradient is another.

    Args:
        optimizer: of the trained model.
        parameters: parameters of it, in the order in which gradients will come.
        kind: 'adam' takes second moments (``exp_avg_sq``) from the optimizer's state, and falls back to 'none' where
            it has none, as before its first step.
    """
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    states = [optimizer.state.get(parameter, {}) for parameter in parameters]
    uses_moments = kind == "adam" and any("exp_avg_sq" in state for state in states)
    rates = [float(groups[parameter]["lr"]) for parameter in parameters]
    if uses_moments:
        rates = [
            rate * new_gradient_share(state, groups[parameter]["betas"][0])
            for rate, state, parameter in zip(rates, states, parameters, strict=True)
        ]
    lr = max(rates)
    shares = [rate / lr if lr > 0 else 1.0 for rate in rates]
    if uses_moments:

        def precondition(gradients: Sequence[Tensor]) -> list[Tensor]:
            factors = []
            for gradient, parameter, state, share in zip(gradients, parameters, states, shares, strict=True):
                group = groups[parameter]
                factors.append(share * adam_factor(gradient, state, group["betas"][1], group["eps"]))
            return factors

        return NextStep(lr, precondition, uses_moments=True)
    if all(share == 1 for share in shares):
        return NextStep(lr, None, uses_moments=False)
    return NextStep(
        lr, lambda gradients: [torch.full_like(g, s) for g, s in zip(gradients, shares, strict=True)], False
    )


def schedule_factor(optimizer: Optimizer) -> float:
    """Return by how much a schedule has scaled the optimizer's learning rate: 1 at its peak, or without a schedule."""
    peaks = [(float(group["lr"]), float(group.get("initial_lr", group["lr"]))) for group in optimizer.param_groups]
    return max((rate / peak for rate, peak in peaks if peak > 0), default=1.0)


def new_gradient_share(state: dict[str, Tensor], beta1: float) -> float:
    """Return the weight of the next gradient in AdamW's bias-corrected first moment: 1 at first, 1 - beta1 later."""
    steps = int(state["step"]) + 1 if "step" in state else 1
    return float((1 - beta1) / (1 - beta1**steps))


def adam_factor(gradient: Tensor, state: dict[str, Tensor], beta2: float, eps: float) -> Tensor:
    """Return ``p = 1 / (sqrt(v_hat) + eps)`` elementwise, with v_hat as it will be after a step on `gradient`.

    The moment of the step itself belongs to it, as in AdamW: of a parameter that has had no gradient yet, an embedding
    of a new token, the old moment alone would make steps of 1 / eps. Where v_hat is 0 no sequence moves the parameter,
    and p is 0. p counts as a constant: its dependence on the weights is left out.

    Args:
        gradient: of the step.
        state: the optimizer's, with ``exp_avg_sq`` and ``step``; empty before the parameter's first step.
        beta2: decay of the second moment.
        eps: term in the denominator.
    """
    squares = (1 - beta2) * _wide(gradient).square()
    steps = 1
    if "exp_avg_sq" in state:
        squares = squares.add_(state["exp_avg_sq"].to(squares), alpha=beta2)
        steps = int(state["step"]) + 1
    moved = squares > 0
    root = squares.div_(1 - beta2**steps).sqrt_().add_(eps)
    return root.reciprocal_().mul_(moved).to(gradient.dtype)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
