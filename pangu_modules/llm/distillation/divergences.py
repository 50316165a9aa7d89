"""Divergences of a student from a teacher whose likeliest tokens alone are known, one per token, in nats.

With the tail as one bucket beside the k tokens, all are lower bounds of the divergence over the whole vocabulary (data
processing), never negative, and see what the student puts outside; with all of the vocabulary they are equal to it.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from pangu_modules.common.config import Config
from pangu_modules.llm.distillation.support import TeacherSupport, student_logprobs

TINY = 1e-12  # a tail below it is none


class DivergenceConfig(Config):
    """Which divergence, and how the rest of the vocabulary counts."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = Field(
        "forward_kl", description="KL(teacher || student), KL(student || teacher), or generalised Jensen-Shannon."
    )
    tail: Literal["bucket", "renormalise"] = Field(
        "bucket", description="The rest of the vocabulary: one bucket, or left out of both distributions."
    )
    jsd_beta: float = Field(0.5, gt=0, lt=1, description="Share of the teacher in the mixture of JSD, beta.")
    temperature: PositiveFloat = Field(1.0, description="Softening of both distributions; the cache's own.")
    label_weight: NonNegativeFloat = Field(
        0.0, description="Weight of - p(label) log q(label), the teacher's probability of the token that follows."
    )
    chunk_tokens: PositiveInt | None = Field(
        None, description="Tokens whose float32 logits exist at the same time; empty: what suits the device."
    )

    @model_validator(mode="after")
    def _check_support(self) -> Self:
        if self.tail == "renormalise" and self.divergence != "forward_kl":
            raise ValueError(
                f"divergence={self.divergence!r} without the tail is blind to what the student puts outside the "
                "teacher's likeliest tokens: take tail='bucket'"
            )
        return self


def cached_divergence(
    logits: Tensor,
    support: TeacherSupport,
    config: DivergenceConfig,
    *,
    labels: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """Return the divergence at each position, (n,), with gradients to the student's logits.

    Args:
        logits: the student's, (positions, vocabulary).
        support: the teacher's likeliest tokens at the same positions.
        config: which divergence.
        labels: (n,), the token that follows, which must be the last of the support: needed for `label_weight` alone.
        rows: (n,), the positions that count, none twice; None: all.

    Raises:
        ValueError: a position has no logits, or a token is outside the vocabulary.
    """
    positions = len(logits if rows is None else rows)
    if positions != len(support.ids):
        raise ValueError(f"{positions} positions of the student, {len(support.ids)} of the teacher")
    if support.ids.numel() and int(support.ids.max()) >= logits.shape[-1]:
        raise ValueError(
            f"the teacher's token {int(support.ids.max())} is outside the student's vocabulary of {logits.shape[-1]}"
        )
    log_q, log_q_tail = student_logprobs(
        logits, support.ids, rows=rows, temperature=config.temperature, chunk_tokens=config.chunk_tokens
    )
    losses = _divergence(support, log_q, log_q_tail, config)
    if config.label_weight:
        if labels is None or not bool((support.ids[:, -1] == labels).all()):
            raise ValueError("label_weight needs the labels, as the last tokens of the support")
        losses = losses - config.label_weight * support.logprobs[:, -1].exp() * log_q[:, -1]
    return config.temperature**2 * losses


def _divergence(support: TeacherSupport, log_q: Tensor, log_q_tail: Tensor, config: DivergenceConfig) -> Tensor:
    hidden = torch.full_like(log_q, -torch.inf)
    log_p = torch.where(support.counted, support.logprobs.to(log_q), hidden)
    log_q = torch.where(support.counted, log_q, hidden)
    if config.tail == "bucket":
        # Rounding leaves the teacher a little even where there is nothing outside the support.
        tail = torch.where(torch.isneginf(log_q_tail), 0, support.tail().to(log_q))
        log_p = torch.cat([log_p, torch.where(tail > TINY, tail.clamp(min=TINY).log(), -torch.inf)[:, None]], 1)
        log_q = torch.cat([log_q, log_q_tail[:, None]], 1)
    else:
        log_p = log_p - log_p.logsumexp(1, keepdim=True)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    if config.divergence == "forward_kl":
        return kl(log_p, log_q)
    if config.divergence == "reverse_kl":
        # A bucket that the teacher leaves empty would make it infinite; rounding alone empties one.
        return kl(log_q, log_p.clamp(min=_log(TINY)))
    beta = config.jsd_beta
    mixture = torch.logaddexp(_finite(log_p) + _log(beta), _finite(log_q) + _log(1 - beta))
    return beta * kl(log_p, mixture) + (1 - beta) * kl(log_q, mixture)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return ``sum p (log p - log q)`` over the last dimension; where p is 0 nothing is added, and no gradient."""
    there = ~torch.isneginf(log_p)
    log_p, log_q = torch.where(there, log_p, 0), torch.where(there, log_q, 0)
    return torch.where(there, log_p.exp() * (log_p - log_q), 0).sum(-1)


def _finite(logs: Tensor) -> Tensor:
    """Return logarithms with a number so low in place of minus infinity that it adds nothing, but has a gradient."""
    return logs.clamp(min=-1e4)


def _log(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).log())
