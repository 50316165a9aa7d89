"""Objectives: named losses per sequence, weighted by the batch's `sample_weight` and added up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pangu_modules.common.batches import Batch

Outputs = Mapping[str, Any]
Loss = Callable[[Any, Batch, Outputs], Tensor]


@dataclass(frozen=True)
class Objective:
    """A loss ``(module, batch, outputs) -> (batch,)`` and the weight with which it enters the sum."""

    loss: Loss
    weight: float = 1.0


def weighted_mean(losses: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Return the batch mean of ``sample_weight * losses``; a weight of 1 is an ordinary sample.

    The mean is over the batch and not over the sum of weights, so weights w that sum to 1 are written to the batch as
    ``len(w) * w``; data parallel and gradient accumulation then average as usual.

    Args:
        losses: (batch,), one loss per sequence or image.
        sample_weight: (batch,), or None for weight 1 everywhere.

    Raises:
        ValueError: the shapes differ.
    """
    if losses.ndim != 1:
        raise ValueError(f"an objective returns one loss per sequence, shape (batch,); got {tuple(losses.shape)}")
    if sample_weight is None:
        return losses.mean()
    if sample_weight.shape != losses.shape:
        raise ValueError(f"sample_weight has shape {tuple(sample_weight.shape)}, the losses {tuple(losses.shape)}")
    return (sample_weight.to(losses.dtype) * losses).mean()


def evaluate(
    objectives: Mapping[str, Objective], module: Any, batch: Batch, outputs: Outputs
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of all objectives (a scalar) and each objective's own value by name (detached).

    Raises:
        ValueError: there is no objective, or one returns a wrong shape (its name is in the message).
    """
    if not objectives:
        raise ValueError("the module has no objective; add one to module.objectives before training")
    values: dict[str, Tensor] = {}
    total: Tensor | None = None
    for name, objective in objectives.items():
        try:
            value = weighted_mean(objective.loss(module, batch, outputs), batch.get("sample_weight"))
        except ValueError as error:
            raise ValueError(f"objective {name!r}: {error}") from error
        values[name] = value.detach()
        total = objective.weight * value if total is None else total + objective.weight * value
    assert isinstance(total, torch.Tensor)
    return total, values
