"""What is known of a teacher offline, log-probabilities of its likeliest tokens, and the student's on the same ones.

The rest of the vocabulary is one bucket, the tail. Its mass follows from the others, for the teacher because its
log-probabilities are normalised over the whole vocabulary, for the student because its logits are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pangu_modules.llm.losses import default_chunk, wide


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
    logits: Tensor, ids: Tensor, *, temperature: float = 1.0, chunk_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return a student's log-probabilities of some tokens, and of all others together.

    The normaliser is over the whole vocabulary, in float32 (float64 stays float64); of its size only `chunk_tokens`
    rows exist at a time, in the backward pass too, where they are computed again.

    Args:
        logits: (n, vocabulary).
        ids: (n, k).
        temperature: of the softmax.
        chunk_tokens: rows of wide logits that exist at the same time; by default what suits the device.

    Returns:
        (n, k) and (n,), in nats; the second is minus infinity where `ids` holds the whole vocabulary.
    """
    size = chunk_tokens or default_chunk(logits)
    parts = [
        checkpoint(_logprobs, rows, chosen, temperature, use_reentrant=False, preserve_rng_state=False)
        for rows, chosen in zip(logits.split(size), ids.split(size), strict=True)
    ]
    return torch.cat([inside for inside, _ in parts]), torch.cat([outside for _, outside in parts])


def _logprobs(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    scaled = wide(logits) / temperature
    normaliser = scaled.logsumexp(-1)
    inside = scaled.gather(-1, ids) - normaliser[:, None]
    outside = scaled.scatter(-1, ids, -torch.inf)
    # Where nothing is left, the gradient of logsumexp would be nan.
    empty = torch.isneginf(outside).all(-1)
    left = torch.where(empty[:, None], 0, outside).logsumexp(-1)
    return inside, torch.where(empty, -torch.inf, left - normaliser)
