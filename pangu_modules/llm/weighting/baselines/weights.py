"""Weights of a batch without learning what helps: random ones, by loss, and by keeping a part. Pure functions.

Weights are (batch,), non-negative, and sum to 1; written to a batch, they are multiplied by its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from pangu_modules.common.config import Config
from pangu_modules.llm.weighting.baselines.ngrams import Selection
from pangu_modules.llm.weighting.model import effective_batch_size

BISECTIONS = 60


class BaselineConfig(Config):
    """Which weights, and the parameters of each kind."""

    kind: Literal["uniform", "random", "loss", Selection] = Field(
        description="uniform; random with a given ESS; loss: softmax over the batch's losses; perplexity: bigrams "
        "of the target; dsir: hashed n-gram importance; classifier: logistic regression, target against raw data."
    )
    ess: tuple[float, ...] = Field(
        (0.7,), description="ESS / batch of random weights; several: of equally long parts of training."
    )
    prefer: Literal["high", "low"] = Field("high", description="Which losses weigh more; loss only.")
    tau: PositiveFloat = Field(1.0, description="Temperature of the losses, in nats per token; loss only.")
    keep: float = Field(0.5, gt=0, le=1, description="Share of the training data that offline methods keep.")

    @model_validator(mode="after")
    def _check_ess(self) -> Self:
        for share in self.ess or (0.0,):
            if not 0 < share <= 1:
                raise ValueError(f"ess={self.ess}: each is a share of the batch, above 0 and at most 1")
        return self


def uniform_weights(batch_size: int) -> Tensor:
    """Return 1 / batch for each sequence."""
    return torch.full((batch_size,), 1 / batch_size)


def random_weights(batch_size: int, ess_share: float, generator: np.random.Generator) -> Tensor:
    """Return random weights with a given effective sample size: the control for mere noise in the weights.

    The softmax of normal scores, whose scale is chosen so that ``1 / sum(w^2) = ess_share * batch``.

    Args:
        batch_size: number of sequences, B.
        ess_share: ESS / B, from 1 / B (all weight on one) to 1 (uniform).
        generator: of the scores.
    """
    scores = torch.from_numpy(generator.standard_normal(batch_size))
    return sharpened(scores, ess_share * batch_size).float()


def sharpened(scores: Tensor, ess: float) -> Tensor:
    """Return ``softmax(c * scores)`` (batch,) with the c >= 0 at which its effective sample size is `ess`.

    The ESS falls with c from the batch size to the number of largest scores; outside of that range the nearer end is
    returned.
    """
    low, high = 0.0, 1.0
    while effective_batch_size(torch.softmax(high * scores, 0)) > ess and high < 1e6:
        high *= 2
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if effective_batch_size(torch.softmax(middle * scores, 0)) > ess:
            low = middle
        else:
            high = middle
    return torch.softmax(low * scores, 0)


def loss_weights(losses: Tensor, prefer: Literal["high", "low"], tau: float) -> Tensor:
    """Return ``softmax(+-l / tau)`` of the sequences' losses (batch,), plus for high ones; no gradient goes through.

    Args:
        losses: l, (batch,), in nats per token.
        prefer: which losses get much weight.
        tau: temperature, in nats per token.
    """
    sign = 1 if prefer == "high" else -1
    return torch.softmax(sign * losses.detach().float() / tau, dim=0)


def kept_weights(kept: Tensor) -> Tensor:
    """Return equal weights of the sequences where `kept` (batch,) is true, 0 for the others; uniform if none is."""
    if not kept.any():
        return uniform_weights(len(kept)).to(kept.device)
    return kept.float() / kept.sum()


def threshold_of(scores: Sequence[float], keep: float) -> float:
    """Return the score from which on sequences are kept, so that a share `keep` of these scores is.

    Raises:
        ValueError: there is no score.
    """
    if len(scores) == 0:
        raise ValueError("no scores to take a threshold from: the training data are empty")
    ranked = np.sort(np.asarray(scores))[::-1]
    return float(ranked[max(1, round(keep * len(ranked))) - 1])
