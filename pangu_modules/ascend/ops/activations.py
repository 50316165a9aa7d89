"""Gated activations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from pangu_modules.ascend.ops.examples import Example, Maker
from pangu_modules.ascend.ops.operator import FusedCall, Operator, first


def swiglu(x: Tensor, dim: int = -1) -> Tensor:
    """Return ``silu(a) * b`` for the halves a, b of `x` along `dim`: the gate comes first."""
    gate, up = x.chunk(2, dim)
    return F.silu(gate) * up


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """Return ``silu(gate) * up``, (..., D), of two tensors, which the fused operator takes joined.

    Joining them moves as much memory as the operator saves; but autograd keeps two tensors then, not three.
    """
    return F.silu(gate) * up


def geglu(x: Tensor, dim: int = -1, activate_left: bool = False) -> Tensor:
    """Return ``gelu(b) * a`` for the halves a, b of `x`, or ``gelu(a) * b``; gelu by its tanh formula."""
    left, right = x.chunk(2, dim)
    return F.gelu(left, approximate="tanh") * right if activate_left else left * F.gelu(right, approximate="tanh")


def _limits(x: Tensor, dim: int = -1, activate_left: bool = False) -> str | None:
    if not 1 <= x.ndim <= 8 or x.shape[dim] % 2:
        return f"it takes 1 to 8 dimensions and an even size to halve, not {tuple(x.shape)} along {dim}"
    return None


def _call(x: Tensor, dim: int = -1) -> FusedCall:
    return FusedCall((x,), {"dim": dim})


def _examples(make: Maker) -> Iterator[Example]:
    yield Example("last dimension", (make.floats(2, 3, 32),), {})
    yield Example("first dimension", (make.floats(4, 16),), {"dim": 0})


def _gated_limits(gate: Tensor, up: Tensor) -> str | None:
    if gate.shape != up.shape or gate.dtype != up.dtype:
        return "gate and up differ in shape or type"
    return None if 1 <= gate.ndim <= 8 else f"it takes 1 to 8 dimensions, not {gate.ndim}"


def _gated_call(gate: Tensor, up: Tensor) -> FusedCall:
    return FusedCall((torch.cat((gate, up), dim=-1),), {"dim": -1})


def _gated_examples(make: Maker) -> Iterator[Example]:
    yield Example("two projections", (make.floats(2, 3, 16), make.floats(2, 3, 16)), {})


def _geglu_call(x: Tensor, dim: int = -1, activate_left: bool = False) -> FusedCall:
    return FusedCall((x,), {"dim": dim, "approximate": 1, "activate_left": activate_left})


def _geglu_examples(make: Maker) -> Iterator[Example]:
    for left in (False, True):
        yield Example("left" if left else "right", (make.floats(2, 3, 32),), {"activate_left": left})


SWIGLU = Operator("npu_swiglu", swiglu, _call, _examples, gradients="own", limits=_limits)
GATED_SILU = Operator("npu_swiglu", gated_silu, _gated_call, _gated_examples, gradients="own", limits=_gated_limits)
GEGLU = Operator("npu_geglu", geglu, _geglu_call, _geglu_examples, gradients="recomputed", limits=_limits, result=first)
