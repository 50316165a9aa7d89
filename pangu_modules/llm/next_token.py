"""Modules trained and evaluated by the next token: the objective they start with, and the sums of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pangu_modules.llm.losses import labels_of, per_sequence_loss, token_losses
from pangu_modules.llm.models.perplexity import MeanLoss
from pangu_modules.llm.packing import check_kept_apart, sequence_counts, sequence_means
from pangu_modules.training.composition import name_of, words_of
from pangu_modules.training.module import PanguModule
from pangu_modules.training.objectives import Batch, Losses, Objective, Outputs, check_objectives


class NextTokenModule(PanguModule):
    """A module whose outputs hold ``logits`` (batch, seq, vocabulary), for batches of token ids.

    The objective it starts with, ``language_modelling``, is the mean next-token cross-entropy of each sequence;
    evaluations give the mean over all targets of a set, however they are batched, and its perplexity.
    """

    def __init__(self, config: PanguModule.Config | Mapping[str, Any], **runtime: Any) -> None:
        super().__init__(config, **runtime)
        by_token = getattr(self.config, "loss_per", "sequence") == "token"
        loss = counted_loss if by_token else language_modelling_loss
        self.objectives["language_modelling"] = Objective(loss, packed=True)
        self._evaluated = MeanLoss()

    def check_packing(self) -> None:
        """Refuse rows of several sequences where model, objectives or callbacks cannot keep these apart.

        Raises:
            ValueError: one cannot; it is named.
        """
        callbacks = [] if self._trainer is None else self.trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if "sample weights" in words_of(callback):
                raise ValueError(
                    f"packing: callback {name_of(callback)!r} weights each row of a batch, and packed rows hold "
                    "several sequences: set packing=none"
                )
        check_objectives(self.objectives)
        check_kept_apart(self.model, lambda batch: self.compute_outputs(batch)["logits"])

    def on_validation_epoch_start(self) -> None:
        """Start the sums of an evaluation."""
        self._evaluated = MeanLoss(exchange_on=self.device)

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch's losses, weighted by their numbers of targets."""
        labels = labels_of(batch)  # each row weighs as many targets as it has, so that of packed rows nothing differs
        self._evaluated.update(per_sequence_loss(self.compute_outputs(batch)["logits"], labels), labels)

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
    """Return each sequence's mean next-token cross-entropy, (sequences,), one in each row unless they are packed."""
    return sequence_means(*token_losses(outputs["logits"], labels_of(batch)), batch)


def counted_loss(module: PanguModule, batch: Batch, outputs: Outputs) -> Losses:
    """Return `language_modelling_loss` and the number of targets of each sequence, both (sequences,)."""
    losses, valid = token_losses(outputs["logits"], labels_of(batch))
    return sequence_means(losses, valid, batch), sequence_counts(valid, batch)
