"""Root-mean-square norms."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pangu_modules.ascend.ops.examples import Example, Maker
from pangu_modules.ascend.ops.operator import FusedCall, Operator, first


def rms_norm(x: Tensor, weight: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Return ``weight * x / sqrt(mean(x^2) + epsilon)``, computed in float32 and rounded before the product.

    Args:
        x: (..., D).
        weight: (D,).
        epsilon: added to the mean square.
    """
    return weight * _normalized(x, epsilon).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Return the norm of ``x + residual``, and that sum; arguments as in `rms_norm`."""
    total = x + residual
    return rms_norm(total, weight, epsilon), total


def gemma_rms_norm(x: Tensor, weight: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Return ``(1 + weight) * x / sqrt(mean(x^2) + epsilon)``, computed in float32; arguments as in `rms_norm`."""
    normalized = _normalized(x, epsilon)
    return (normalized * (1.0 + weight.to(normalized.dtype))).to(x.dtype)


def _normalized(x: Tensor, epsilon: float) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.to(torch.float32)
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)


def _limits(x: Tensor, weight: Tensor, epsilon: float = 1e-6) -> str | None:
    if not 2 <= x.ndim <= 8:
        return f"x has {x.ndim} dimensions, and it takes 2 to 8"
    if weight.dtype != x.dtype:
        return f"weight is {weight.dtype} and x is {x.dtype}, and it takes one type"
    if weight.shape != x.shape[-1:]:
        return f"weight has the shape {tuple(weight.shape)}, not that of x's last dimension, {x.shape[-1]}"
    return None


def _call(x: Tensor, weight: Tensor, epsilon: float = 1e-6) -> FusedCall:
    return FusedCall((x, weight), {"epsilon": epsilon})


def _examples(make: Maker) -> Iterator[Example]:
    yield Example("three dimensions", (make.floats(2, 3, 64), make.positive(64)), {"epsilon": 1e-5})


def _add_limits(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float = 1e-6) -> str | None:
    if residual.shape != x.shape or residual.dtype != x.dtype:
        return "x and residual differ in shape or type"
    return _limits(x, weight, epsilon)


def _add_call(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float = 1e-6) -> FusedCall:
    return FusedCall((x, residual, weight), {"epsilon": epsilon})


def _norm_and_sum(outputs: tuple[Tensor, Tensor, Tensor], *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
    normalized, _, total = outputs  # the middle one is 1 / rms
    return normalized, total


def _add_examples(make: Maker) -> Iterator[Example]:
    x, residual = make.floats(2, 3, 64), make.floats(2, 3, 64)
    yield Example("three dimensions", (x, residual, make.positive(64)), {"epsilon": 1e-5})


RMS_NORM = Operator("npu_rms_norm", rms_norm, _call, _examples, gradients="own", limits=_limits, result=first)
ADD_RMS_NORM = Operator(
    "npu_add_rms_norm",
    add_rms_norm,
    _add_call,
    _add_examples,
    gradients="recomputed",
    limits=_add_limits,
    result=_norm_and_sum,
)
GEMMA_RMS_NORM = Operator(
    "npu_gemma_rms_norm", gemma_rms_norm, _call, _examples, gradients="recomputed", limits=_limits, result=first
)
