"""A data-influence model: the measured influence of a few training sequences, predicted for all by their n-grams.

MATES (Yu et al. 2024, arXiv:2406.06046) measures how much one step on a sequence lowers the loss on a target, fits a
small language model to these values, selects the data it predicts the most of, and does so anew as training goes on.
Here the small model is a ridge regression on hashed n-grams.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from pangu_modules.common.config import Config
from pangu_modules.llm.weighting.baselines.ngrams import BUCKETS, sequences_of, shares
from pangu_modules.llm.weighting.hypergradient import Batch, Lookahead, Parameters, hypergradient
from pangu_modules.llm.weighting.preconditioning import NextStep
from pangu_modules.training.module import batch_size


class InfluenceConfig(Config):
    """How influences are measured and predicted, and how much is kept."""

    fd_scale: float = Field(1e-2, ge=1e-5, le=1, description="Norm of the displacement, as DWM's.")
    keep: float = Field(0.5, gt=0, le=1, description="Share of the training data that is kept.")
    alpha: PositiveFloat = Field(1.0, description="Strength of the ridge penalty of the regression.")


class InfluenceModel:
    """Predicts influences, each scaled by the deviation of those it was fitted to.

    Args:
        coefficients: (buckets,), of the features `baselines_ngrams.shares`.
    """

    def __init__(self, coefficients: np.ndarray) -> None:
        self.coefficients = coefficients

    @classmethod
    def fit(cls, sequences: Sequence[Tensor], influences: Sequence[float], alpha: float) -> InfluenceModel:
        """Return the ridge regression of influences on n-grams.

        Args:
            sequences: tokens of the sequences that were measured, (tokens,) int64 each.
            influences: theirs, in any unit; the larger, the more a sequence helps.
            alpha: strength of the ridge penalty; features are vectors of length 1, influences have deviation 1.
        """
        from sklearn.linear_model import Ridge

        values = np.asarray(influences, dtype=np.float64)
        scaled = (values - values.mean()) / (values.std() + np.finfo(np.float64).tiny)
        return cls(Ridge(alpha=alpha, solver="sparse_cg", tol=1e-8).fit(shares(sequences, BUCKETS), scaled).coef_)

    def score(self, sequences: Sequence[Tensor]) -> np.ndarray:
        """Return the predicted influence of each sequence but for a constant, float64."""
        predicted: np.ndarray = shares(sequences, len(self.coefficients)) @ self.coefficients
        return predicted


def measured_influences(
    losses_of: nn.Module,
    parameters: Parameters,
    batches: Iterator[tuple[Batch, Batch]],
    step: NextStep,
    fd_scale: float = 1e-2,
) -> tuple[list[Tensor], list[float]]:
    """Return sequences and how much a step on each lowers the target's loss, to first order and by one common factor.

    The influence of a sequence is h of `hypergradient` under uniform weights: the gradient of the target's loss after
    a step on the whole batch, times the sequence's own step.

    Args:
        losses_of: gives the losses of the trained model, see `protocol.LossesOf`.
        parameters: of the trained model, by their names in `losses_of`.
        batches: pairs of a training batch and a batch of the target.
        step: of the trained model, see `next_step`.
        fd_scale: see `hypergradient`.
    """
    sequences: list[Tensor] = []
    influences: list[float] = []
    for train, target in batches:
        size = batch_size(train)
        uniform = torch.full((size,), 1 / size, device=next(iter(parameters.values())).device)
        ahead = Lookahead(losses_of, parameters, train, target, step.lr, step.precondition)
        found = hypergradient(ahead, uniform, fd_scale=fd_scale)
        if found.h.isfinite().all():
            sequences += sequences_of(train)
            influences += found.h.tolist()
    return sequences, influences
