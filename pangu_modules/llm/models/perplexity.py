"""Mean next-token loss and perplexity over all targets of many batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.utilities.distributed import gather_all_tensors

from pangu_modules.llm.losses import count_targets, labels_of, per_sequence_loss
from pangu_modules.training.objectives import Batch


class MeanLoss:
    """The mean loss over targets, summed in float64.

    The sums stay on the CPU: not every accelerator has float64. It is no nn.Module, so that moving a LightningModule
    does not move them.

    Args:
        exchange_on: device of the tensors that processes exchange, for the mean over all of them, which all must then
            ask for; None for the mean of this process alone.
    """

    def __init__(self, exchange_on: torch.device | None = None) -> None:
        gather = None if exchange_on is None else partial(_gather, exchange_on)
        # A NaN makes the mean NaN, where torchmetrics would by default leave it out.
        mean = MeanMetric(nan_strategy=math.nan, sync_on_compute=gather is not None, dist_sync_fn=gather)
        self._mean = mean.set_dtype(torch.float64)
        self.has_targets = False

    def update(self, losses: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            losses: (batch,), the mean loss of each sequence over its targets.
            labels: (batch, seq), see `per_sequence_loss`.
        """
        counts = count_targets(labels).cpu().double()
        self._mean.update(losses.detach().cpu().double(), counts)
        self.has_targets = self.has_targets or bool(counts.any())

    def compute(self) -> float:
        """Return the mean in nats per target; NaN without targets."""
        return float(self._mean.compute())


@torch.no_grad()
def perplexity(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Return exp of the mean next-token loss over all targets, with the model in evaluation mode, in this process.

    Args:
        model: a transformers causal language model.
        batches: each with ``input_ids``, perhaps ``attention_mask`` and ``labels``, all (batch, seq); without labels
            every real token is a target.

    Raises:
        ValueError: there is no target.
    """
    runner: Any = model
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    mean = MeanLoss()
    for batch in batches:
        inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask") if name in batch}
        labels = labels_of(batch).to(device)
        mean.update(per_sequence_loss(runner(**inputs, use_cache=False).logits, labels), labels)
    model.train(training)
    if not mean.has_targets:
        raise ValueError("perplexity needs batches with sequences of at least two tokens")
    return float(torch.tensor(mean.compute(), dtype=torch.float64).exp())


def _gather(device: torch.device, value: Tensor, group: Any = None) -> list[Tensor]:
    """Return the value of every process; backends of accelerators exchange only tensors on their device."""
    dtype = torch.float32 if device.type in ("mps", "npu") else torch.float64
    return [part.cpu().double() for part in gather_all_tensors(value.to(device, dtype), group)]
