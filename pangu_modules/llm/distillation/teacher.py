"""Distillation from a teacher as an objective of a module: its loss compares logits on the student's own batch."""

from __future__ import annotations

from typing import Any, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from pangu_modules.common.config import Config
from pangu_modules.llm.distillation.loss import token_divergences
from pangu_modules.llm.losses import labels_of
from pangu_modules.llm.packing import check_kept_apart, is_packed, model_inputs, per_sequence
from pangu_modules.training.module import PanguModule
from pangu_modules.training.objectives import Batch, Loss, Losses, Outputs

MODEL_READS = ("input_ids", "attention_mask", "position_ids")


class DistillationConfig(Config):
    """Weights of the losses; the defaults are Pangu Light's recovery: forward KL on logits alone."""

    lambda_kd: NonNegativeFloat = Field(1.0, description="Weight of the forward KL on logits.")
    lambda_ce: NonNegativeFloat = Field(0.0, description="Weight of the language-model loss.")
    temperature: PositiveFloat = Field(1.0, description="Softening of both distributions, T.")
    chunk_tokens: PositiveInt | None = Field(
        None, description="Tokens whose float32 logits exist at the same time; empty: what suits the device."
    )

    @model_validator(mode="after")
    def _has_a_loss(self) -> Self:
        if self.lambda_ce == 0 and self.lambda_kd == 0:
            raise ValueError("lambda_kd and lambda_ce are both 0: nothing would be learned; set one above 0")
        return self


def distillation_objective(
    teacher: nn.Module,
    *,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    device: str | None = None,
    padded: bool = False,
) -> Loss:
    """Return the loss ``T^2 KL(teacher || student)`` per sequence, for `Objective` and ``module.objectives``.

    The teacher runs in evaluation mode, without gradients, on the batch of the student. It belongs to the objective:
    it is no submodule of the student and in no checkpoint, and copies of the student (weight averages) share it.

    Args:
        teacher: a transformers causal LM or a `CausalLM`; its parameters are frozen.
        temperature: T, see `distillation_loss`.
        chunk_tokens: see `distillation_loss`.
        device: where the teacher runs; by default it moves to the batch's device at the first batch.
        padded: compare the tokens that both have, where their vocabularies have different sizes: who sets it has made
            sure that they are one vocabulary, padded to different lengths (see `text_checks.check_siblings`).

    Raises:
        ValueError: the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    model = teacher.model if isinstance(teacher, PanguModule) else teacher
    return _Distillation(model, temperature, chunk_tokens, device, padded)


def common_rows(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (batch, seq, common) of the tokens that both have.

    The sizes of one family pad their embeddings to different lengths; what only one has is padding, and counts in
    neither softmax.
    """
    common = min(student.shape[-1], teacher.shape[-1])
    if student.shape[-1] == teacher.shape[-1]:
        return student, teacher
    return student[..., :common], teacher[..., :common]


class _Distillation:
    def __init__(
        self, teacher: nn.Module, temperature: float, chunk_tokens: int | None, device: str | None, padded: bool
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature = temperature
        self.chunk_tokens = chunk_tokens
        self.device = device
        self.padded = padded
        self.keeps_apart = False  # not asked yet: whether the teacher does that with packed sequences

    def __call__(self, module: Any, batch: Batch, outputs: Outputs) -> Losses:
        if module.model is self.teacher:
            raise ValueError("teacher and student are the same object: give the teacher a copy of its own")
        student, teacher = outputs["logits"], self.teacher_logits(batch)
        if self.padded:
            student, teacher = common_rows(student, teacher)
        losses, valid = token_divergences(
            student,
            teacher.to(student.device),
            labels_of(batch),
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
        )
        return per_sequence(module, losses, valid, batch)

    @torch.no_grad()
    def teacher_logits(self, batch: Batch) -> Tensor:
        """Return the teacher's logits (batch, seq, vocabulary) on the batch's tokens."""
        device = self.device or batch["input_ids"].device
        self.teacher.to(device)
        if is_packed(batch) and not self.keeps_apart:
            check_kept_apart(self.teacher, self._logits)
            self.keeps_apart = True
        given = {name: batch[name].to(device) for name in MODEL_READS if name in batch}
        return self._logits(given)

    def _logits(self, batch: Batch) -> Tensor:
        logits: Tensor = self.teacher(**model_inputs(batch), use_cache=False).logits
        return logits

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self
