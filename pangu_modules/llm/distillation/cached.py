"""Distillation from a batch that holds what the teacher says, as an objective of a module; no teacher is at hand."""

from __future__ import annotations

from typing import Any, Self

import torch
from pydantic import Field, NonNegativeFloat, model_validator
from torch import Tensor

from pangu_modules.common.batches import IGNORE_INDEX
from pangu_modules.llm.distillation.divergences import DivergenceConfig, cached_divergence
from pangu_modules.llm.distillation.support import TeacherSupport
from pangu_modules.llm.losses import default_chunk, labels_of, next_tokens, wide
from pangu_modules.llm.packing import per_sequence
from pangu_modules.training.objectives import Batch, Losses, Outputs

TEACHERS = ("teacher_ids", "teacher_logprobs", "teacher_label_logprobs")


class CachedDistillationConfig(DivergenceConfig):
    """Which divergence, and the weights of the losses."""

    alpha_kd: NonNegativeFloat = Field(1.0, description="Weight of the divergence from the teacher.")
    alpha_ce: NonNegativeFloat = Field(
        0.0, description="Weight of the language-model loss; above 0 for references alone: it would confirm mistakes."
    )

    @model_validator(mode="after")
    def _check_losses(self) -> Self:
        if self.alpha_kd == 0 and self.alpha_ce == 0:
            raise ValueError("alpha_kd and alpha_ce are both 0: nothing would be learned; set one above 0")
        if self.temperature != 1:
            raise ValueError(
                f"temperature={self.temperature:g}: scores are kept at temperature 1, and the normaliser of another "
                "one is not in them; leave it at 1, or distil from a teacher at hand (Distillation)"
            )
        return self


class CachedDistillation:
    """The objective: each sequence's mean divergence from what the batch says of the teacher.

    Args:
        config: which divergence.

    Attributes:
        num_tokens: rows of the student's head that the teacher has, too; the rest is padding, and counts in no softmax;
            None: all are.
        measures: whether the next batch is measured, too.
        figures: of the last batch that was: ``outside``, the teacher's mass outside the likeliest tokens, and
            ``staleness``, ``KL(sampling student || present one)`` by the estimator ``r - 1 - log r`` with the ratio r
            of present to sampling probability (Schulman 2020, "Approximating KL Divergence"), in nats per token.
    """

    def __init__(self, config: DivergenceConfig) -> None:
        self.config = config
        self.num_tokens: int | None = None
        self.measures = False
        self.figures: dict[str, Tensor] = {}

    def __call__(self, module: Any, batch: Batch, outputs: Outputs) -> Losses:
        """Return each sequence's mean, (sequences,), and where the module counts by tokens their numbers.

        Raises:
            ValueError: the batch has no scores.
        """
        missing = [name for name in TEACHERS if name not in batch]
        if missing:
            raise ValueError(f"the batch has no {missing[0]}, the teacher's scores: train on DistillationData")
        labels = labels_of(batch)
        targets = next_tokens(labels)
        valid = targets != IGNORE_INDEX
        following = {
            name: batch[name][:, 1:][valid[:, :-1]] for name in (*TEACHERS, "sampled_logprobs") if name in batch
        }
        logits, wanted = outputs["logits"][valid][:, : self.num_tokens], targets[valid]
        logprobs = following["teacher_logprobs"]
        support = TeacherSupport(following["teacher_ids"], logprobs, torch.isfinite(logprobs))
        support = support.with_labels(wanted, following["teacher_label_logprobs"])
        found = cached_divergence(logits, support, self.config, labels=wanted)
        if self.measures:
            self._measure(logits, wanted, support, following.get("sampled_logprobs"))
        losses = found.new_zeros(labels.shape).masked_scatter(valid, found)
        return per_sequence(module, losses, valid, batch)

    @torch.no_grad()
    def _measure(self, logits: Tensor, labels: Tensor, support: TeacherSupport, sampled: Tensor | None) -> None:
        self.figures = {"outside": support.tail().mean()}
        if sampled is not None and len(labels):
            ratio = (label_logprobs(logits, labels) - sampled)[torch.isfinite(sampled)]
            if len(ratio):
                self.figures["staleness"] = (ratio.exp() - 1 - ratio).mean()


def label_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-probability of each label, (n,), from logits (n, vocabulary), a chunk in float32 at a time."""
    size = default_chunk(logits)
    parts = [
        wide(rows).log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
        for rows, chosen in zip(logits.split(size), labels.split(size), strict=True)
    ]
    return torch.cat(parts)
