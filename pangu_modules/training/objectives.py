"""Objectives: named losses per sequence, weighted by the batch's `sample_weight` and added up.

A sequence counts as one, or by its tokens: then an objective returns ``(losses, counts)``, and the sum over all
sequences of an optimizer step, of all its micro-batches and processes, is divided by the sum of their counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pangu_modules.common.batches import Batch
from pangu_modules.training.processes import Processes

Outputs = Mapping[str, Any]
Losses = Tensor | tuple[Tensor, Tensor]
Loss = Callable[[Any, Batch, Outputs], Losses]


@dataclass(frozen=True)
class Objective:
    """A loss ``(module, batch, outputs) -> (batch,)`` and the weight with which it enters the sum.

    The loss may return ``(losses, counts)``, both (batch,): each sequence's mean over its tokens, and their number.

    Attributes:
        loss: one value for each sequence: each row of the batch, or of packed rows each sequence in them.
        weight: of its mean.
        packed: whether the loss knows packed rows, whose ``position_ids`` count anew in each of several sequences.
    """

    loss: Loss
    weight: float = 1.0
    packed: bool = False


@dataclass(frozen=True)
class Evaluation:
    """The objectives on one batch.

    Attributes:
        total: their weighted sum, a scalar.
        values: each objective's own value by name, detached scalars.
        count: by how many tokens the batch counts, a scalar; None where each batch counts the same.
    """

    total: Tensor
    values: dict[str, Tensor]
    count: Tensor | None = None


def weighted_mean(losses: Tensor, sample_weight: Tensor | None, counts: Tensor | None = None) -> Tensor:
    """Return the batch mean of ``sample_weight * losses``; a weight of 1 is an ordinary sample.

    The mean is over the batch, or over `counts`, and not over the sum of weights, so weights w that sum to 1 are
    written to the batch as ``len(w) * w``; data parallel and gradient accumulation then average as usual.

    Args:
        losses: (batch,), one loss per sequence or image.
        sample_weight: (batch,), or None for weight 1 everywhere.
        counts: (batch,), the tokens by which each sequence counts, or None where all count as one.

    Raises:
        ValueError: the shapes differ.
    """
    if losses.ndim != 1:
        raise ValueError(f"an objective returns one loss per sequence, shape (batch,); got {tuple(losses.shape)}")
    for what, given in (("sample_weight", sample_weight), ("the counts", counts)):
        if given is not None and given.shape != losses.shape:
            raise ValueError(f"{what} has shape {tuple(given.shape)}, the losses {tuple(losses.shape)}")
    if sample_weight is not None:
        losses = sample_weight.to(losses.dtype) * losses
    if counts is None:
        return losses.mean()
    counts = counts.to(losses.dtype)
    return (counts * losses).sum() / counts.sum().clamp(min=1)


def sequence_losses(losses: Losses) -> Tensor:
    """Return what an objective has returned without the counts, (batch,)."""
    return losses[0] if isinstance(losses, tuple) else losses


def check_objectives(objectives: Mapping[str, Objective]) -> None:
    """Refuse objectives that would take a packed row for one sequence.

    Raises:
        ValueError: there is one; it is named.
    """
    for name, objective in objectives.items():
        if not objective.packed:
            raise ValueError(f"objective {name!r} takes each row for one sequence: set packing=none, or leave it out")


def evaluate(objectives: Mapping[str, Objective], module: Any, batch: Batch, outputs: Outputs) -> Evaluation:
    """Return the weighted sum of all objectives, and each one's own value.

    If one counts its sequences by tokens, all do: sums of a step with several normalisers cannot be divided at its end.

    Raises:
        ValueError: there is no objective, one returns a wrong shape (its name is in the message), or two count
            differently.
    """
    if not objectives:
        raise ValueError("the module has no objective; add one to module.objectives before training")
    if "position_ids" in batch:
        check_objectives(objectives)
    results = {name: objective.loss(module, batch, outputs) for name, objective in objectives.items()}
    counts = _common_counts(results)
    values: dict[str, Tensor] = {}
    total: Tensor | None = None
    for name, objective in objectives.items():
        try:
            value = weighted_mean(sequence_losses(results[name]), batch.get("sample_weight"), counts)
        except ValueError as error:
            raise ValueError(f"objective {name!r}: {error}") from error
        values[name] = value.detach()
        total = objective.weight * value if total is None else total + objective.weight * value
    assert isinstance(total, torch.Tensor)
    return Evaluation(total, values, None if counts is None else counts.sum())


def _common_counts(results: Mapping[str, Losses]) -> Tensor | None:
    counted = {name: result[1] for name, result in results.items() if isinstance(result, tuple)}
    if not counted:
        return None
    first, counts = next(iter(counted.items()))
    for name, others in counted.items():
        if not torch.equal(others, counts):
            raise ValueError(
                f"objectives {first!r} and {name!r} count different tokens of a sequence ({counts.tolist()} and "
                f"{others.tolist()}): let both be over the same labels"
            )
    return counts


class TokenNormaliser:
    """Turns the means of micro-batches that count by tokens into the mean of a whole optimizer step.

    Lightning divides each micro-batch's loss by their number, and data parallel averages over processes. Here each is
    multiplied by its share of the step's first micro-batch, all processes together; when the last one is done, the
    gradients are divided by how many times more tokens the step had.
    """

    def __init__(self) -> None:
        self._first = 0.0  # tokens of the step's first micro-batch, over all processes
        self._total = 0.0  # of all its micro-batches so far

    def scaled(self, evaluation: Evaluation, *, begins: bool) -> Tensor:
        """Return the loss to differentiate.

        Args:
            evaluation: of a micro-batch.
            begins: whether it is the first one of an optimizer step.
        """
        if evaluation.count is None:
            return evaluation.total
        group = Processes.current()
        (everywhere,) = group.sum_([evaluation.count.detach().clone().double()])
        count = max(float(everywhere), 1.0)
        if begins:
            self._first, self._total = count, 0.0
        self._total += count
        return evaluation.total * (evaluation.count * group.world_size / self._first).to(evaluation.total.dtype)

    def gradient_factor(self, micro_batches: int) -> float:
        """Return what the gradients of the step must be multiplied by at its end; 1 where nothing counts by tokens.

        Args:
            micro_batches: by which Lightning has divided each loss.
        """
        return micro_batches * self._first / self._total if self._total else 1.0
