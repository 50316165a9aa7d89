"""Next-token cross-entropy, one loss per sequence, and the labels it is taken on.

It walks over the tokens in chunks, forwards and backwards, in float32 (float64 stays float64), and keeps nothing of
the vocabulary's size from the one to the other but the logits themselves. Second derivatives, forward-mode derivatives
(`torch.func.jvp`) and `torch.func.vmap` work as with torch's own losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from pangu_modules.common.batches import IGNORE_INDEX

CPU_CHUNK = 2**20  # logits in a chunk: 4 MB stay in the processor's cache, which is 2 to 4 times as fast
ACCELERATOR_CHUNK = 2**26

CROSS_ENTROPY: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {}
"""Fused operators by device type (``"npu"``): each row's cross-entropy, of logits (tokens, vocabulary), targets
(tokens,) and the target that is ignored, whose rows get 0."""


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
    return mean_over_targets(losses, counted)


def token_losses(
    logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX, *, chunk_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the next-token cross-entropy at each position, and where there is one; arguments as `per_sequence_loss`.

    Returns:
        losses (batch, seq), float32 or float64, 0 where the next token is no target, and (batch, seq) bool.

    Raises:
        ValueError: shapes differ.
    """
    check_logits(logits, labels)
    targets = next_tokens(labels, ignore_index)
    chunk = chunk_tokens or default_chunk(logits)
    losses = _CrossEntropy.apply(logits.flatten(0, 1), targets.flatten(), ignore_index, chunk)
    return losses.view(labels.shape), targets != ignore_index


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


def count_targets(labels: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Return the number of predicted tokens of each sequence, (batch,): the first token is never predicted."""
    return (labels[:, 1:] != ignore_index).sum(1)


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Raise a ValueError unless logits (batch, seq, vocabulary) belong to labels (batch, seq)."""
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(
            f"logits (batch, seq, vocabulary) and labels (batch, seq) do not match: "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        )


def default_chunk(logits: Tensor) -> int:
    """Return the number of tokens of a chunk that suits the device of logits (..., vocabulary)."""
    elements = CPU_CHUNK if logits.device.type == "cpu" else ACCELERATOR_CHUNK
    return max(1, elements // logits.shape[-1])


def mean_over_targets(losses: Tensor, valid: Tensor) -> Tensor:
    """Return each sequence's mean of losses (batch, seq), which are 0 where `valid` (batch, seq) is not; 0 of none."""
    return losses.sum(1) / valid.sum(1).clamp(min=1)


def wide(logits: Tensor) -> Tensor:
    """Return the logits in float32, or in float64 if they are that."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _row_losses(logits: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    return functional.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="none")


class _CrossEntropy(Function):
    """Cross-entropy of each token, (tokens, vocabulary) and (tokens,) -> (tokens,); its backward recomputes softmax."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, targets: Tensor, ignore_index: int, chunk_tokens: int) -> Tensor:
        chunks = zip(logits.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
        row_losses = CROSS_ENTROPY.get(logits.device.type, _row_losses)
        return torch.cat([row_losses(wide(chunk), target, ignore_index) for chunk, target in chunks])

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
            gradient = wide(logits[part]).softmax(-1) * scales[part]
            grad_logits[part] = gradient.scatter_add(-1, targets[part], -scales[part])
        return grad_logits, None, None, None

    @staticmethod
    def jvp(ctx: Any, logits_tangent: Tensor, *_: None) -> Tensor:
        logits, targets = ctx.saved_tensors
        valid = targets != ctx.ignore_index
        targets = torch.where(valid, targets, 0)[:, None]
        chunks = zip(*(tensor.split(ctx.chunk_tokens) for tensor in (logits, logits_tangent, targets)), strict=True)
        tangents = [
            (wide(chunk).softmax(-1) * tangent).sum(-1) - tangent.gather(-1, target).squeeze(-1)
            for chunk, tangent, target in chunks
        ]
        return torch.where(valid, torch.cat(tangents), 0)
