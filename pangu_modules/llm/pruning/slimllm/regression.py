"""Closed-form repair of an output matrix after structured pruning (SlimLLM, arXiv:2505.22689, linear regression).

The pruned sub-layer's output u is fitted to the whole sub-layer's output y, on the calibration tokens:

- ``affine``, the paper's: per output dimension ``y_d = a_d u_d + b_d``, folded into the output matrix and its bias;
- ``bias``, FLAP's compensation: the intercept alone, ``b_d = mean(y_d - u_d)``;
- ``full_ridge``, not the paper's (the OBS family): a new output matrix for the kept inputs.

Least squares is not robust: if pruning removes the channel behind a massive activation, the few tokens that have it
decide slope and intercept. Random channels do that now and then (one seed of two on SmolLM2 at 20 %: slope 36 in one
dimension of layer 28, perplexity 11406 with ``affine``, 135 with ``none``); importance scores keep such channels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pangu_modules.llm.calibration.statistics import exact_device, wide

Recovery = Literal["none", "bias", "affine", "full_ridge"]


class FitMoments(NamedTuple):
    """Moments per output dimension, (size,) each: of the pruned output u and of the whole output y."""

    mean_u: Tensor
    mean_y: Tensor
    variance_u: Tensor
    covariance: Tensor


class ColumnRegression:
    """Accumulates the moments of u and y over tokens, shifted by the first batch's means so that digits survive.

    Args:
        size: columns of u and y.
        device: device of the tensors to come.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.count = 0
        self.sums = torch.zeros(4, size, dtype=torch.float64, device=exact_device(device))
        self._shifts: tuple[Tensor, Tensor] | None = None

    def update(self, u: Tensor, y: Tensor) -> None:
        """Add tokens u, y: (tokens, size)."""
        u, y = wide(u), wide(y)
        if self._shifts is None:
            self._shifts = (u.mean(0), y.mean(0))
        u = u - self._shifts[0]
        y = y - self._shifts[1]
        self.count += len(u)
        batch = torch.stack([u.sum(0), y.sum(0), u.square().sum(0), (u * y).sum(0)])
        self.sums += batch.to(self.sums)

    @property
    def moments(self) -> FitMoments:
        """Means, variance of u and covariance so far."""
        assert self._shifts is not None
        mean_u, mean_y, square_u, product = self.sums / self.count
        shift_u, shift_y = (shift.to(self.sums) for shift in self._shifts)
        return FitMoments(mean_u + shift_u, mean_y + shift_y, square_u - mean_u.square(), product - mean_u * mean_y)


def fit(recovery: Recovery, moments: FitMoments) -> tuple[Tensor, Tensor]:
    """Return slope a and intercept b of the repair, (size,) each.

    ``affine`` is ordinary least squares, ``a = cov(u, y) / var(u)``, ``b = mean(y) - a mean(u)``; a column whose var(u)
    is below 1e-12 of the mean variance keeps a = 1. ``bias`` has a = 1 everywhere.
    """
    variance = moments.variance_u
    slope = torch.ones_like(variance)
    if recovery == "affine":
        constant = variance <= 1e-12 * variance.mean()
        slope = torch.where(constant, slope, moments.covariance / variance.masked_fill(constant, 1))
    return slope, moments.mean_y - slope * moments.mean_u


@torch.no_grad()
def fold_affine(linear: nn.Linear, slope: Tensor, intercept: Tensor) -> None:
    """Fold ``y = a u + b`` into the linear layer that computes u; it gains a bias if it has none.

    Args:
        linear: output matrix with `size` rows, changed in place.
        slope: (size,) a.
        intercept: (size,) b.
    """
    weight = linear.weight
    a = slope.to(weight.device)
    bias = intercept.to(weight.device)
    if linear.bias is not None:
        bias = bias + a * linear.bias
    weight.copy_(a[:, None] * weight)
    linear.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=weight.requires_grad)


def ridge_matrix(inputs: Tensor, products: Tensor, ridge: float) -> Tensor:
    """Solve ``(Z^T Z + mu tr(Z^T Z)/F I) W = Z^T y`` for the output matrix W^T.

    Args:
        inputs: (F, F) second moment of the kept inputs, ``Z^T Z`` up to a factor shared with `products`.
        products: (F, size) ``Z^T y``.
        ridge: mu, relative to the mean diagonal entry.

    Returns:
        (size, F), the layout of ``nn.Linear.weight``.
    """
    mean_diagonal = inputs.diagonal().mean()
    regular = inputs + ridge * mean_diagonal * torch.eye(len(inputs), dtype=inputs.dtype, device=inputs.device)
    return torch.linalg.solve(regular, products).T
