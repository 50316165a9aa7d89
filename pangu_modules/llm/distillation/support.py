"""What is known of a teacher offline, log-probabilities of its likeliest tokens, and the student's on the same ones.

The rest of the vocabulary is one bucket, the tail. Its mass follows from the others, for the teacher because its
log-probabilities are normalised over the whole vocabulary, for the student because its logits are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd import Function

from pangu_modules.llm.losses import default_chunk, wide

LEAST = -80.0  # logarithm of the smallest probability of the rest that has its exact gradient


@dataclass(frozen=True)
class TeacherSupport:
    """A teacher's likeliest tokens at each of n positions, in any order.

    Attributes:
        ids: (n, k) int64; no token twice where `counted` says that it counts.
        logprobs: (n, k) in nats, at the temperature of the loss, normalised over the whole vocabulary.
        counted: (n, k) bool; where it is not, the entry is a repetition.
    """

    ids: Tensor
    logprobs: Tensor
    counted: Tensor

    @classmethod
    def of(cls, ids: Tensor, logprobs: Tensor) -> Self:
        """Return the support of distinct tokens `ids` (n, k) with their `logprobs` (n, k).

        Raises:
            ValueError: shapes differ, or a log-probability is not finite.
        """
        if ids.ndim != 2 or ids.shape != logprobs.shape:
            raise ValueError(f"ids {tuple(ids.shape)} and logprobs {tuple(logprobs.shape)} must both be (tokens, k)")
        wrong = (~torch.isfinite(logprobs)).any(1).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise ValueError(f"the teacher's log-probabilities at position {row} are not finite: {logprobs[row]}")
        return cls(ids.long(), wide(logprobs), torch.ones_like(ids, dtype=torch.bool))

    def with_labels(self, labels: Tensor, logprobs: Tensor) -> Self:
        """Return the support with each position's own next token, where it is not among the likeliest already.

        Args:
            labels: (n,), the tokens.
            logprobs: (n,), the teacher's log-probabilities of them.
        """
        absent = (self.ids != labels[:, None]).all(1, keepdim=True)
        return replace(
            self,
            ids=torch.cat([self.ids, labels[:, None]], 1),
            logprobs=torch.cat([self.logprobs, logprobs[:, None].to(self.logprobs)], 1),
            counted=torch.cat([self.counted, absent], 1),
        )

    def tail(self) -> Tensor:
        """Return the teacher's probability outside the support, (n,), never below 0."""
        inside = torch.where(self.counted, self.logprobs.exp(), 0).sum(1)
        return (1 - inside).clamp(min=0)


def student_logprobs(
    logits: Tensor,
    ids: Tensor,
    *,
    rows: Tensor | None = None,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return a student's log-probabilities of some tokens, and of all others together.

    The normaliser is over the whole vocabulary, in float32 (float64 stays float64); of its size only `chunk_tokens`
    rows exist at a time, in the backward pass too, where they are computed again.

    Args:
        logits: (positions, vocabulary).
        ids: (n, k).
        rows: (n,), which of the positions, none twice; None: all, in order.
        temperature: of the softmax.
        chunk_tokens: rows of wide logits that exist at the same time; by default what suits the device.

    Returns:
        (n, k) and (n,), in nats; the second is minus infinity where `ids` holds the whole vocabulary.
    """
    if rows is None:
        rows = torch.arange(len(logits), device=logits.device)
    size = chunk_tokens or default_chunk(logits)
    inside, outside, _ = _Logprobs.apply(logits, rows, ids, temperature, size)
    return inside, outside


class _Logprobs(Function):
    """Log-probabilities of `ids` (n, k) and of all else together (n,), and the normaliser (n,).

    One exponential a logit in each direction: the loss must not cost much more than cross-entropy does.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits: Tensor, rows: Tensor, ids: Tensor, temperature: float, chunk_tokens: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        insides, outsides, normalisers = [], [], []
        for chosen, tokens in zip(rows.split(chunk_tokens), ids.split(chunk_tokens), strict=True):
            scaled = _scaled(logits, chosen, temperature)
            most = scaled.amax(-1)
            weights = (scaled - most[:, None]).exp_()
            normaliser = weights.sum(-1).log_() + most
            insides.append(scaled.gather(-1, tokens) - normaliser[:, None])
            outsides.append(weights.scatter_(-1, tokens, 0).sum(-1).log_() + most - normaliser)
            normalisers.append(normaliser)
        return torch.cat(insides), torch.cat(outsides), torch.cat(normalisers)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        logits, rows, ids, ctx.temperature, ctx.chunk_tokens = inputs
        _, outside, normaliser = output
        ctx.save_for_backward(logits, rows, ids, outside, normaliser)
        ctx.save_for_forward(logits, rows, ids, outside, normaliser)

    @staticmethod
    def backward(
        ctx: Any, to_inside: Tensor, to_outside: Tensor, to_normaliser: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        logits, rows, ids, outside, normaliser = ctx.saved_tensors
        to_outside = torch.where(torch.isneginf(outside), 0, to_outside)
        # d log q(v) / dz = [v] - q, that of the rest is r - q, with r being q within the rest, and of the normaliser q.
        whole = to_normaliser - to_inside.sum(-1) - to_outside
        rest = to_outside * _one_by(outside)
        gradient = torch.zeros_like(logits)
        for start in range(0, len(rows), ctx.chunk_tokens):
            part = slice(start, start + ctx.chunk_tokens)
            q = (_scaled(logits, rows[part], ctx.temperature) - normaliser[part, None]).exp()
            others = q.scatter(-1, ids[part], 0)
            slope = torch.addcmul(q * whole[part, None], others, rest[part, None])
            slope = slope.scatter_add(-1, ids[part], to_inside[part])
            gradient[rows[part]] = (slope if ctx.temperature == 1 else slope / ctx.temperature).to(gradient.dtype)
        return gradient, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> tuple[Tensor, Tensor, Tensor]:
        logits, rows, ids, outside, normaliser = ctx.saved_tensors
        insides, outsides, normalisers = [], [], []
        for start in range(0, len(rows), ctx.chunk_tokens):
            part = slice(start, start + ctx.chunk_tokens)
            q = (_scaled(logits, rows[part], ctx.temperature) - normaliser[part, None]).exp()
            moved = _scaled(tangent, rows[part], ctx.temperature)
            normalisers.append((q * moved).sum(-1))
            insides.append(moved.gather(-1, ids[part]) - normalisers[-1][:, None])
            rest = (q * moved).scatter(-1, ids[part], 0).sum(-1) * _one_by(outside[part])
            outsides.append(torch.where(torch.isneginf(outside[part]), 0, rest - normalisers[-1]))
        return torch.cat(insides), torch.cat(outsides), torch.cat(normalisers)


def _scaled(logits: Tensor, rows: Tensor, temperature: float) -> Tensor:
    chosen = wide(logits[rows])
    return chosen if temperature == 1 else chosen / temperature


def _one_by(log_mass: Tensor) -> Tensor:
    """Return one by a probability, of which no more than float32 can say (1e-35) is asked."""
    return (-log_mass.clamp(min=LEAST)).exp()
