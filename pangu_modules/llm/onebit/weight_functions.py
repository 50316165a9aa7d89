"""Weight functions: from latent weights to the effective ones of the forward pass, with their derivative.

A function acts on normalized weights z = W / S, where S is its analytic scale (one per row, one per tensor, or 1). The
effective weight is ``S_l S F(z)``, with the learned row scale S_l, and the layer's backward uses ``dF/dz`` as the
function states it: the true derivative (progressive), or 1 (all straight-through ones). So every method is the same
layer with another function (arXiv:2508.06974, equations 4 to 6 and 9; baselines as in the method card).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

SMALLEST_T = 1e-3
"""Below it tanh(t z) / tanh(t) is z to within 1e-6 z^3, and is taken as z itself."""


def signs(values: Tensor) -> Tensor:
    """Return +1 where a value is at least 0 and -1 elsewhere; binary weights have no zero."""
    return torch.where(values >= 0, 1.0, -1.0).to(values.dtype)


class WeightFunction:
    """Straight-through binarization: F = sign(z), taken to have the slope 1 (method ``ste``).

    The base of all functions. `knob` is a 0-dim tensor, what the schedule moves: t, lambda, or nothing.
    """

    scaled_by_row_mean: ClassVar[bool] = True
    """Whether S is the mean of |W| of each row, which then may be learned, frozen and differentiated."""
    differentiates_scale: ClassVar[bool] = False
    """Whether S is differentiated where the configuration says "auto"."""
    values_per_row: ClassVar[int] = 2
    """Distinct values of a row of the final weights."""

    def scale(self, weight: Tensor) -> Tensor:
        """Return the analytic scale S of a weight (out, in): here mean|W| of each row, (out, 1)."""
        return weight.abs().mean(1, keepdim=True)

    def final(self, z: Tensor) -> Tensor:
        """Return what F ends as, and what inference uses."""
        return signs(z)

    def starts_at(self, knob: float) -> bool:
        """Return whether F is the identity at this knob, so that the layer is the dense one bit for bit."""
        return False

    def values(self, z: Tensor, knob: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return F(z) times `value_factor`'s inverse, and what the backward needs beside the weight (or None)."""
        return self.final(z), None

    def value_factor(self, knob: Tensor) -> Tensor | float:
        """Return the factor that `values` leaves out because it is cheaper to apply to rows."""
        return 1.0

    def slope(self, kept: Tensor | None, knob: Tensor) -> Tensor | float:
        """Return dF/dz as the backward uses it, from what `values` kept."""
        return 1.0


class PostTrainingSign(WeightFunction):
    """F = sign(z) with its true derivative 0: latent weights do not train, only scales do (method ``sign``)."""

    def slope(self, kept: Tensor | None, knob: Tensor) -> Tensor | float:
        """Return 0."""
        return 0.0


class Progressive(WeightFunction):
    """F = tanh(t z) / tanh(t), from the identity (t = 0) to the sign, with its true derivative (method's eq. 4-6)."""

    differentiates_scale = True

    def starts_at(self, knob: float) -> bool:
        """Return whether t is (nearly) 0."""
        return knob < SMALLEST_T

    def values(self, z: Tensor, knob: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return tanh(t z), which is also all that the backward needs."""
        squashed = torch.tanh(z * knob)
        return squashed, squashed

    def value_factor(self, knob: Tensor) -> Tensor | float:
        """Return 1 / tanh(t)."""
        return 1 / torch.tanh(knob)

    def slope(self, kept: Tensor | None, knob: Tensor) -> Tensor | float:
        """Return t (1 - tanh(t z)^2) / tanh(t)."""
        assert kept is not None
        return (1 - kept.square()) * (knob / torch.tanh(knob))


class Blend(WeightFunction):
    """F = z + lambda (sign(z) - z), straight-through: warm-up quantization (method ``lambda``)."""

    def starts_at(self, knob: float) -> bool:
        """Return whether lambda is 0."""
        return knob == 0

    def values(self, z: Tensor, knob: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the blend."""
        return torch.lerp(z, signs(z), knob.to(z.dtype)), None


class BitNetB1(WeightFunction):
    """``mean|W| sign(W - mean W)`` with the means of the whole tensor (BitNet, arXiv:2310.11453, weights alone)."""

    scaled_by_row_mean = False

    def scale(self, weight: Tensor) -> Tensor:
        """Return mean|W|, (1, 1)."""
        return weight.abs().mean().view(1, 1)

    def final(self, z: Tensor) -> Tensor:
        """Return the sign of the centered weights."""
        return signs(z - z.mean())


class BitNetB158(BitNetB1):
    """``g clip(round(W / g), -1, 1)``, g = mean|W| of the tensor (BitNet b1.58, arXiv:2402.17764, weights alone)."""

    values_per_row = 3

    def final(self, z: Tensor) -> Tensor:
        """Return -1, 0 or 1."""
        return z.round().clamp(-1, 1)


class OneBit(WeightFunction):
    """``a sign(W) b^T`` with learned a (the layer's row scale) and b (its input scale) (OneBit, arXiv:2402.11295)."""

    scaled_by_row_mean = False

    def scale(self, weight: Tensor) -> Tensor:
        """Return 1, (1, 1): the magnitudes are all in a and b."""
        return torch.ones(1, 1, dtype=weight.dtype, device=weight.device)


class Hard(WeightFunction):
    """What another function ends as, with a constant slope: the hard tail of a schedule.

    Args:
        function: the function.
        slope: 0 (latent weights rest) or 1 (straight-through).
    """

    def __init__(self, function: WeightFunction, slope: float) -> None:
        self.function = function
        self.constant_slope = slope

    def scale(self, weight: Tensor) -> Tensor:
        """Return the function's own."""
        return self.function.scale(weight)

    def final(self, z: Tensor) -> Tensor:
        """Return the function's own."""
        return self.function.final(z)

    def slope(self, kept: Tensor | None, knob: Tensor) -> Tensor | float:
        """Return the constant."""
        return self.constant_slope


FUNCTIONS: Mapping[str, WeightFunction] = {
    "progressive": Progressive(),
    "sign": PostTrainingSign(),
    "ste": WeightFunction(),
    "lambda": Blend(),
    "bitnet_b1": BitNetB1(),
    "bitnet_b158": BitNetB158(),
    "onebit": OneBit(),
}
