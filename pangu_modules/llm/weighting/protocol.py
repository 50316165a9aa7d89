"""The protocol between the weighting and a module: one loss per sequence, and nothing else.

A `PanguModule` offers it through its objectives. Any other LightningModule implements one method and reads one key::

    class MyModule(LightningModule):
        def sequence_losses(self, batch):                 # (batch,), differentiable, unweighted, logs nothing
            return cross_entropy(self(batch["input_ids"]), ...)

        def training_step(self, batch, batch_idx):
            return weighted_mean(self.sequence_losses(batch), batch.get("sample_weight"))

with ``weighted_mean`` of `pangu_modules.training.objectives`, the batch mean of ``sample_weight * losses``.
A batch is a dictionary of tensors whose first dimension is the batch. Sequences without targets are found
by ``labels`` or ``input_ids`` (batch, seq) where the batch has them.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pangu_modules.llm.losses import count_targets, labels_of
from pangu_modules.training.module import PanguModule, batch_size
from pangu_modules.training.objectives import Batch


@runtime_checkable
class SequenceLosses(Protocol):
    """What a LightningModule of one's own implements to be trained with weighted data."""

    def sequence_losses(self, batch: Batch) -> Tensor:
        """Return the loss of each sequence, (batch,), differentiable and without weights."""
        ...


def check_protocol(module: Any) -> None:
    """Refuse a module that offers no losses per sequence.

    Raises:
        TypeError: it is no `PanguModule` and has no ``sequence_losses``.
    """
    if not isinstance(module, (PanguModule, SequenceLosses)):
        raise TypeError(
            f"{type(module).__name__} offers no loss per sequence: implement sequence_losses(batch) -> (batch,) and "
            "weight them in training_step by batch['sample_weight'] (see pangu_modules.llm.weighting.protocol)"
        )


def per_sequence_losses(module: Any, batch: Batch) -> Tensor:
    """Return the training loss of each sequence before it is weighted, ``l_i``, (batch,).

    Of a `PanguModule` it is the weighted sum of its objectives; of another module what its ``sequence_losses`` returns.

    Raises:
        TypeError: the module offers no losses per sequence.
        ValueError: the result is not one loss per sequence.
    """
    check_protocol(module)
    if isinstance(module, PanguModule):
        outputs = module.compute_outputs(batch)
        parts = []
        for name, objective in module.objectives.items():
            part = objective.loss(module, batch, outputs)
            if isinstance(part, tuple):
                raise ValueError(
                    f"objective {name!r} counts sequences by their tokens, but weights inside the batch are of whole "
                    "sequences: set module.loss_per=sequence"
                )
            parts.append(objective.weight * part)
        losses = torch.stack(parts).sum(0)
    else:
        losses = module.sequence_losses(batch)
    if losses.shape != (batch_size(batch),):
        raise ValueError(
            f"{type(module).__name__} gave losses of shape {tuple(losses.shape)} for a batch of {batch_size(batch)} "
            "sequences: one loss per sequence is needed"
        )
    return losses


class LossesOf(nn.Module):
    """`per_sequence_losses` as the forward of an nn.Module, which ``torch.func.functional_call`` can call."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor:
        """Return the losses, (batch,)."""
        return per_sequence_losses(self.module, batch)


def sequences_with_targets(batch: Batch) -> Tensor | None:
    """Return which sequences have a target token, (batch,) bool; None where the batch has no tokens."""
    labels = batch.get("labels")
    if "input_ids" not in batch and not (isinstance(labels, Tensor) and labels.ndim == 2):
        return None
    return count_targets(labels_of(batch)) > 0


def sequence(batch: Batch, index: int) -> dict[str, Any]:
    """Return the batch that holds only the sequence `index`."""
    size = batch_size(batch)
    return {
        name: value[index : index + 1] if isinstance(value, Tensor) and value.ndim and len(value) == size else value
        for name, value in batch.items()
    }
