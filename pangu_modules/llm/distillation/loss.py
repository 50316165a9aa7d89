"""The distillation loss, one per sequence: what a student's logits lack of a teacher's.

It walks over the tokens in chunks, as the losses of `pangu_modules.llm.losses` do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from pangu_modules.common.batches import IGNORE_INDEX
from pangu_modules.llm.losses import check_logits, default_chunk, mean_over_targets, next_tokens, wide


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    ignore_index: int = IGNORE_INDEX,
    chunk_tokens: int | None = None,
) -> Tensor:
    """Return ``T^2 KL(teacher || student)`` of each sequence, the mean over its predicted tokens, in nats.

    Both distributions are softened by the temperature T; the factor T^2 keeps the size of the gradients
    (Hinton et al. 2015, arXiv:1503.02531, section 2). No gradient goes to the teacher.

    Args:
        student_logits: (batch, seq, vocabulary).
        teacher_logits: (batch, seq, vocabulary).
        labels: (batch, seq), as in `per_sequence_loss`: only positions that predict a target count.
        temperature: T.
        ignore_index: label without loss.
        chunk_tokens: tokens whose float32 copies exist at the same time; by default what suits the device.

    Returns:
        (batch,), 0 for a sequence without targets.

    Raises:
        ValueError: shapes or vocabularies differ, or the temperature is not positive.
    """
    losses, valid = token_divergences(
        student_logits,
        teacher_logits,
        labels,
        temperature=temperature,
        ignore_index=ignore_index,
        chunk_tokens=chunk_tokens,
    )
    return mean_over_targets(losses, valid)


def token_divergences(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    ignore_index: int = IGNORE_INDEX,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return ``T^2 KL(teacher || student)`` at each position, and where there is one, as `distillation_loss` does.

    Returns:
        losses (batch, seq), 0 where the next token is no target, and (batch, seq) bool.

    Raises:
        ValueError: shapes or vocabularies differ, or the temperature is not positive.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits have shape {tuple(student_logits.shape)}, the teacher's {tuple(teacher_logits.shape)}: "
            "distillation of logits needs models of one vocabulary on one batch"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    check_logits(student_logits, labels)
    valid = next_tokens(labels, ignore_index) != ignore_index
    student, teacher = student_logits.flatten(0, 1), teacher_logits.detach().flatten(0, 1)
    chunk = chunk_tokens or default_chunk(student)
    losses = _Divergence.apply(student, teacher, valid.flatten(), temperature, chunk)
    return losses.view(labels.shape), valid


class _Divergence(Function):
    """``T^2 KL(teacher || student)`` of each token, 0 where not valid; gradients reach the student alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(student: Tensor, teacher: Tensor, valid: Tensor, temperature: float, chunk_tokens: int) -> Tensor:
        losses = []
        for ours, theirs in zip(student.split(chunk_tokens), teacher.split(chunk_tokens), strict=True):
            log_q, log_p = ((wide(chunk) / temperature).log_softmax(-1) for chunk in (ours, theirs))
            losses.append(functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1))
        return torch.where(valid, temperature**2 * torch.cat(losses), 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        student, teacher, valid, ctx.temperature, ctx.chunk_tokens = inputs
        ctx.save_for_backward(student, teacher, valid)
        ctx.save_for_forward(student, teacher, valid)

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor, None, None, None, None]:
        student, teacher, valid = ctx.saved_tensors
        scales = torch.where(valid, grad_losses, 0)[:, None]
        grad_student = torch.empty_like(student)
        for start in range(0, len(student), ctx.chunk_tokens):
            part = slice(start, start + ctx.chunk_tokens)
            grad_student[part] = _divergence_slope(student[part], teacher[part], ctx.temperature) * scales[part]
        return grad_student, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, student_tangent: Tensor, *_: None) -> Tensor:
        student, teacher, valid = ctx.saved_tensors
        chunks = zip(*(tensor.split(ctx.chunk_tokens) for tensor in (student, teacher, student_tangent)), strict=True)
        tangents = [
            (_divergence_slope(ours, theirs, ctx.temperature) * tangent).sum(-1) for ours, theirs, tangent in chunks
        ]
        return torch.where(valid, torch.cat(tangents), 0)


def _divergence_slope(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the gradient of ``T^2 KL`` with respect to the student's logits: ``T (q - p)``."""
    q, p = ((wide(chunk) / temperature).softmax(-1) for chunk in (student, teacher))
    return temperature * (q - p)
