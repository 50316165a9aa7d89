"""Modules trained and evaluated by the next token: the objective they start with, and the sums of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pangu_modules.llm.losses import count_targets, labels_of, per_sequence_loss
from pangu_modules.llm.models.perplexity import MeanLoss
from pangu_modules.training.module import PanguModule
from pangu_modules.training.objectives import Batch, Losses, Objective, Outputs


class NextTokenModule(PanguModule):
    """A module whose outputs hold ``logits`` (batch, seq, vocabulary), for batches of token ids.

    The objective it starts with, ``language_modelling``, is the mean next-token cross-entropy of each sequence;
    evaluations give the mean over all targets of a set, however they are batched, and its perplexity.
    """

    def __init__(self, config: PanguModule.Config | Mapping[str, Any], **runtime: Any) -> None:
        super().__init__(config, **runtime)
        by_token = getattr(self.config, "loss_per", "sequence") == "token"
        self.objectives["language_modelling"] = Objective(counted_loss if by_token else language_modelling_loss)
        self._evaluated = MeanLoss()

    def on_validation_epoch_start(self) -> None:
        """Start the sums of an evaluation."""
        self._evaluated = MeanLoss(exchange_on=self.device)

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch's losses, weighted by their numbers of targets."""
        losses = language_modelling_loss(self, batch, self.compute_outputs(batch))
        self._evaluated.update(losses, labels_of(batch))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log ``val/loss`` and ``val/perplexity`` over all targets of the set."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log ``test/loss`` and ``test/perplexity`` over all targets of the set."""
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        loss = self._evaluated.compute()
        perplexity = math.exp(loss) if loss < 700 else math.inf
        self.log_dict({f"{stage}/loss": loss, f"{stage}/perplexity": perplexity}, prog_bar=True, sync_dist=True)


def language_modelling_loss(module: PanguModule, batch: Batch, outputs: Outputs) -> Tensor:
    """Return each sequence's mean next-token cross-entropy, (batch,); 0 for one without targets."""
    return per_sequence_loss(outputs["logits"], labels_of(batch))


def counted_loss(module: PanguModule, batch: Batch, outputs: Outputs) -> Losses:
    """Return `language_modelling_loss` and the number of targets of each sequence, both (batch,)."""
    return language_modelling_loss(module, batch, outputs), count_targets(labels_of(batch))
