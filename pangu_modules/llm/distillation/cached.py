"""Distillation from a batch that holds what the teacher says, as an objective of a module; no teacher is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from pydantic import Field, NonNegativeFloat, model_validator
from torch import Tensor

from pangu_modules.common.batches import IGNORE_INDEX
from pangu_modules.llm.distillation.divergences import DivergenceConfig, cached_divergence
from pangu_modules.llm.distillation.support import TeacherSupport
from pangu_modules.llm.losses import default_chunk, labels_of, next_tokens, wide
from pangu_modules.llm.packing import model_inputs, per_sequence
from pangu_modules.training.objectives import Batch, Losses, Outputs

COMPARED = 512  # positions at most, at which there is a distribution over the whole vocabulary
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
        teacher: a transformers model with which the next batch that is measured is compared; then it is forgotten.
        figures: of the last batch that was: ``outside``, the teacher's mass outside the likeliest tokens; ``seen``, the
            share of the divergence over the whole vocabulary that they show, if there was a teacher; and ``staleness``,
            ``KL(sampling student || present one)`` by the estimator ``r - 1 - log r`` with the ratio r of present to
            sampling probability (Schulman 2020, "Approximating KL Divergence"), in nats per token.
    """

    def __init__(self, config: DivergenceConfig) -> None:
        self.config = config
        self.num_tokens: int | None = None
        self.measures = False
        self.teacher: Any = None
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
        # Logits may be as large as all the rest of a step: neither rows nor columns are copied without need.
        logits, rows = self._tokens_of(outputs["logits"].flatten(0, 1)), valid.flatten().nonzero()[:, 0]
        wanted = targets[valid]
        logprobs = following["teacher_logprobs"]
        support = TeacherSupport(following["teacher_ids"], logprobs, torch.isfinite(logprobs))
        support = support.with_labels(wanted, following["teacher_label_logprobs"])
        found = cached_divergence(logits, support, self.config, labels=wanted, rows=rows)
        if self.measures:
            self.figures = {"outside": support.tail().mean(), **_staleness(logits[rows], wanted, following)}
            if self.teacher is not None:
                theirs = self._tokens_of(teacher_logits(self.teacher, batch)[valid])
                self.figures["seen"] = seen_share(logits[rows], theirs, support, self.config)
                self.teacher = None
        losses = found.new_zeros(labels.shape).masked_scatter(valid, found)
        return per_sequence(module, losses, valid, batch)

    def _tokens_of(self, logits: Tensor) -> Tensor:
        """Return logits (n, vocabulary) without the columns that are padding."""
        padded = self.num_tokens is not None and self.num_tokens < logits.shape[-1]
        return logits[:, : self.num_tokens] if padded else logits


@torch.no_grad()
def seen_share(student: Tensor, teacher: Tensor, support: TeacherSupport, config: DivergenceConfig) -> Tensor:
    """Return what share of the divergence over the whole vocabulary the teacher's likeliest tokens show, a scalar.

    Args:
        student: logits (n, vocabulary).
        teacher: logits (n, vocabulary).
        support: what is known of the teacher offline, at the same positions.
        config: which divergence.
    """
    student, teacher = student[:COMPARED], teacher[:COMPARED]
    known = TeacherSupport(support.ids[:COMPARED], support.logprobs[:COMPARED], support.counted[:COMPARED])
    ids = torch.arange(teacher.shape[-1], device=teacher.device).expand(teacher.shape)
    whole = TeacherSupport.of(ids, wide(teacher).log_softmax(-1))
    plain = config.derive(label_weight=0.0)
    shares: Tensor = cached_divergence(student, known, plain).sum() / cached_divergence(student, whole, plain).sum()
    return shares


@torch.no_grad()
def teacher_logits(teacher: Any, batch: Batch) -> Tensor:
    """Return a teacher's logits (batch, seq, vocabulary) on a batch."""
    teacher.to(batch["input_ids"].device)
    logits: Tensor = teacher(**model_inputs(batch), use_cache=False).logits
    return logits


@torch.no_grad()
def _staleness(logits: Tensor, labels: Tensor, following: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the staleness by its name; nothing where it is not known with what probability tokens were sampled."""
    if "sampled_logprobs" not in following:
        return {}
    sampled = following["sampled_logprobs"]
    ratio = (label_logprobs(logits, labels) - sampled)[torch.isfinite(sampled)]
    return {"staleness": (ratio.exp() - 1 - ratio).mean()} if len(ratio) else {}


def label_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-probability of each label, (n,), from logits (n, vocabulary), a chunk in float32 at a time."""
    size = default_chunk(logits)
    parts = [
        wide(rows).log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
        for rows, chosen in zip(logits.split(size), labels.split(size), strict=True)
    ]
    return torch.cat(parts)
