"""Losses of language models, one per sequence: next-token cross-entropy and distillation.

Both walk over the tokens in chunks, forwards and backwards, in float32 (float64 stays float64), and keep nothing of
the vocabulary's size from the one to the other but the logits themselves. Second derivatives, forward-mode derivatives
(`torch.func.jvp`) and `torch.func.vmap` work as with torch's own losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

IGNORE_INDEX = -100
CPU_CHUNK = 2**20  # logits in a chunk: 4 MB stay in the processor's cache, which is 2 to 4 times as fast
ACCELERATOR_CHUNK = 2**26


def per_sequence_loss(
    logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX, *, chunk_tokens: int | None = None
) -> Tensor:
    """Return the mean next-token cross-entropy of each sequence, in nats per token.

    Args:
        logits: (batch, seq, vocabulary); position t predicts the token at t + 1.
        labels: (batch, seq), the tokens themselves, `ignore_index` where they are no targets.
        ignore_index: label without loss.
        chunk_tokens: tokens whose float32 copies exist at the same time; by default what suits the device.

    Returns:
        (batch,), float32 or float64; 0 for a sequence without targets.

    Raises:
        ValueError: shapes differ.
    """
    losses, counted = token_losses(logits, labels, ignore_index, chunk_tokens=chunk_tokens)
    return _mean_over_targets(losses, counted)


def token_losses(
    logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX, *, chunk_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the next-token cross-entropy at each position, and where there is one; arguments as `per_sequence_loss`.

    Returns:
        losses (batch, seq), float32 or float64, 0 where the next token is no target, and (batch, seq) bool.

    Raises:
        ValueError: shapes differ.
    """
    _check_labels(logits, labels, ignore_index)
    targets = next_tokens(labels, ignore_index)
    chunk = chunk_tokens or _default_chunk(logits)
    losses = _CrossEntropy.apply(logits.flatten(0, 1), targets.flatten(), ignore_index, chunk)
    return losses.view(labels.shape), targets != ignore_index


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
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits have shape {tuple(student_logits.shape)}, the teacher's {tuple(teacher_logits.shape)}: "
            "distillation of logits needs models of one vocabulary on one batch"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    _check_labels(student_logits, labels, ignore_index)
    valid = next_tokens(labels, ignore_index) != ignore_index
    student, teacher = student_logits.flatten(0, 1), teacher_logits.detach().flatten(0, 1)
    chunk = chunk_tokens or _default_chunk(student)
    losses = _Divergence.apply(student, teacher, valid.flatten(), temperature, chunk)
    return _mean_over_targets(losses.view(labels.shape), valid)


def next_tokens(labels: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Return the target of each position, its next token: (batch, seq), the last one ignored."""
    return functional.pad(labels[:, 1:], (0, 1), value=ignore_index)


def labels_of(batch: Mapping[str, Any]) -> Tensor:
    """Return the batch's labels (batch, seq); without any, every token that the attention mask does not hide."""
    if "labels" in batch:
        labels: Tensor = batch["labels"]
        return labels
    input_ids: Tensor = batch["input_ids"]
    mask = batch.get("attention_mask")
    return input_ids if mask is None else input_ids.masked_fill(mask == 0, IGNORE_INDEX)


def mask_prompt(input_ids: Tensor, prompt_length: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Return labels for supervised fine-tuning: the answer's tokens; the prompt and padding are ignored.

    Args:
        input_ids: (batch, seq), prompt and answer, padded on the right.
        prompt_length: (batch,), tokens of each prompt.
        attention_mask: (batch, seq), 0 at padding.

    Returns:
        (batch, seq).
    """
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    hidden = positions < prompt_length[:, None]
    if attention_mask is not None:
        hidden = hidden | (attention_mask == 0)
    return input_ids.masked_fill(hidden, IGNORE_INDEX)


def count_targets(labels: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Return the number of predicted tokens of each sequence, (batch,): the first token is never predicted."""
    return (labels[:, 1:] != ignore_index).sum(1)


def _check_labels(logits: Tensor, labels: Tensor, ignore_index: int) -> None:
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(
            f"logits (batch, seq, vocabulary) and labels (batch, seq) do not match: "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        )


def _default_chunk(logits: Tensor) -> int:
    elements = CPU_CHUNK if logits.device.type == "cpu" else ACCELERATOR_CHUNK
    return max(1, elements // logits.shape[-1])


def _mean_over_targets(losses: Tensor, valid: Tensor) -> Tensor:
    return losses.sum(1) / valid.sum(1).clamp(min=1)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


class _CrossEntropy(Function):
    """Cross-entropy of each token, (tokens, vocabulary) and (tokens,) -> (tokens,); its backward recomputes softmax."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, targets: Tensor, ignore_index: int, chunk_tokens: int) -> Tensor:
        chunks = zip(logits.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
        losses = [
            functional.cross_entropy(_wide(chunk), target, ignore_index=ignore_index, reduction="none")
            for chunk, target in chunks
        ]
        return torch.cat(losses)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        logits, targets, ctx.ignore_index, ctx.chunk_tokens = inputs
        ctx.save_for_backward(logits, targets)
        ctx.save_for_forward(logits, targets)

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor, None, None, None]:
        logits, targets = ctx.saved_tensors
        valid = targets != ctx.ignore_index
        scales = torch.where(valid, grad_losses, 0)[:, None]
        targets = torch.where(valid, targets, 0)[:, None]
        grad_logits = torch.empty_like(logits)
        for start in range(0, len(logits), ctx.chunk_tokens):
            part = slice(start, start + ctx.chunk_tokens)
            # d loss / d logits = softmax - one_hot(target)
            gradient = _wide(logits[part]).softmax(-1) * scales[part]
            grad_logits[part] = gradient.scatter_add(-1, targets[part], -scales[part])
        return grad_logits, None, None, None

    @staticmethod
    def jvp(ctx: Any, logits_tangent: Tensor, *_: None) -> Tensor:
        logits, targets = ctx.saved_tensors
        valid = targets != ctx.ignore_index
        targets = torch.where(valid, targets, 0)[:, None]
        chunks = zip(*(tensor.split(ctx.chunk_tokens) for tensor in (logits, logits_tangent, targets)), strict=True)
        tangents = [
            (_wide(chunk).softmax(-1) * tangent).sum(-1) - tangent.gather(-1, target).squeeze(-1)
            for chunk, tangent, target in chunks
        ]
        return torch.where(valid, torch.cat(tangents), 0)


class _Divergence(Function):
    """``T^2 KL(teacher || student)`` of each token, 0 where not valid; gradients reach the student alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(student: Tensor, teacher: Tensor, valid: Tensor, temperature: float, chunk_tokens: int) -> Tensor:
        losses = []
        for ours, theirs in zip(student.split(chunk_tokens), teacher.split(chunk_tokens), strict=True):
            log_q, log_p = ((_wide(chunk) / temperature).log_softmax(-1) for chunk in (ours, theirs))
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
    q, p = ((_wide(chunk) / temperature).softmax(-1) for chunk in (student, teacher))
    return temperature * (q - p)
