"""Products and activations in int8, for inference."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from pangu_modules.ascend.ops.examples import Example, Maker
from pangu_modules.ascend.ops.operator import FLOATS, HALVES, FusedCall, Operator

INNER_LIMIT = 65_535
INT8_MAX = 127
INTEGERS = (torch.int8,)


def quant_matmul(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    row_scale: Tensor,
    bias: Tensor | None = None,
    output_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Return ``(x @ weight + bias) * scale * row_scale``, (M, N), for int8 factors with exact int32 sums.

    Args:
        x: (M, K) int8.
        weight: (K, N) int8; may be a transposed view.
        scale: (N,) or (1,) float32 of the columns.
        row_scale: (M,) float32.
        bias: (N,) int32.
        output_dtype: float16 or bfloat16.
    """
    # float64 holds every sum of products of int8 exactly; integer products have no fast kernel off the device.
    total = x.double() @ weight.double()
    if bias is not None:
        total = total + bias
    return (total.float() * scale.float() * row_scale[:, None]).to(output_dtype)


def dynamic_quant(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x in int8 and each row's scale, float32: ``x / scale`` rounded, where a row's largest entry becomes 127.

    Args:
        x: (..., D); a row of zeros has the scale 0.
    """
    wide = x.float()
    scale = wide.abs().amax(-1) / INT8_MAX
    return (wide / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None]).round().to(torch.int8), scale


def quantize(x: Tensor, scales: Tensor, zero_points: Tensor | None = None, axis: int = -1) -> Tensor:
    """Return ``round(x / scales + zero_points)`` in int8, within -128 to 127.

    Args:
        x: any shape.
        scales: of x's size along `axis`.
        zero_points: as scales, int32.
        axis: where the scales run.
    """
    shape = [1] * x.ndim
    shape[axis] = -1
    total = x.float() / scales.float().view(shape)
    if zero_points is not None:
        total = total + zero_points.float().view(shape)
    return total.round().clamp(-INT8_MAX - 1, INT8_MAX).to(torch.int8)


def weight_quant_matmul(x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """Return ``x @ ((weight + offset) * scale)``, (M, N), of 16-bit rows and an int8 weight.

    Args:
        x: (M, K).
        weight: (K, N) int8.
        scale: (N,), x's type.
        offset: (N,), x's type.
    """
    wide = weight.float() if offset is None else weight.float() + offset.float()
    return (x.float() @ (wide * scale.float())).to(x.dtype)


def dequant_swiglu_quant(x: Tensor, weight_scale: Tensor, row_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return SwiGLU of ``x * weight_scale * row_scale``, gate first, in int8 with its rows' scales.

    Args:
        x: (T, 2 I) int32, a product of int8 factors.
        weight_scale: (1, 2 I) float32.
        row_scale: (T,) float32.
    """
    gate, up = (x.float() * weight_scale * row_scale[:, None]).chunk(2, dim=-1)
    return dynamic_quant(F.silu(gate) * up)


def _limits(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    row_scale: Tensor,
    bias: Tensor | None = None,
    output_dtype: torch.dtype = torch.bfloat16,
) -> str | None:
    if weight.dtype != torch.int8 or x.ndim != 2 or weight.ndim != 2:
        return f"it takes (M, K) and (K, N) in int8, not {tuple(x.shape)} and {tuple(weight.shape)} in {weight.dtype}"
    if max(x.shape[1], weight.shape[1]) > INNER_LIMIT:
        return f"a dimension is above {INNER_LIMIT}"
    if output_dtype not in HALVES:
        return f"the result is {output_dtype}, and it gives float16 or bfloat16"
    if scale.dtype != torch.float32 or row_scale.dtype != torch.float32:
        return "scales are not float32"
    return None if bias is None or bias.dtype == torch.int32 else f"bias is {bias.dtype}, and it takes int32"


def _call(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    row_scale: Tensor,
    bias: Tensor | None = None,
    output_dtype: torch.dtype = torch.bfloat16,
) -> FusedCall:
    # Without output_dtype the operator would return int8.
    return FusedCall((x, weight, scale), {"pertoken_scale": row_scale, "bias": bias, "output_dtype": output_dtype})


def _examples(make: Maker) -> Iterator[Example]:
    x, weight = (make.integers(-127, 128, *shape, dtype=torch.int8) for shape in ((5, 64), (64, 32)))
    scales = (1e-3 * make.positive(32, dtype=torch.float32), make.positive(5, dtype=torch.float32))
    yield Example("bfloat16", (x, weight, *scales), {})
    bias = make.integers(-99, 99, 32, dtype=torch.int32)
    yield Example("float16 with a bias", (x, weight, *scales), {"bias": bias, "output_dtype": torch.float16})


def _dynamic_limits(x: Tensor) -> str | None:
    return None if x.ndim >= 2 and x.numel() else f"it takes rows, not {tuple(x.shape)}"


def _dynamic_call(x: Tensor) -> FusedCall:
    return FusedCall((x,), {})


def _dynamic_examples(make: Maker) -> Iterator[Example]:
    yield Example("three dimensions", (make.floats(2, 3, 64),), {})


def _quantize_limits(x: Tensor, scales: Tensor, zero_points: Tensor | None = None, axis: int = -1) -> str | None:
    if scales.ndim != 1 or scales.shape[0] != x.shape[axis]:
        return f"it takes one scale for each place along {axis}, not {tuple(scales.shape)} for {tuple(x.shape)}"
    return None


def _quantize_call(x: Tensor, scales: Tensor, zero_points: Tensor | None = None, axis: int = -1) -> FusedCall:
    return FusedCall((x, scales, zero_points, torch.qint8), {"axis": axis % x.ndim, "div_mode": True})


def _quantize_examples(make: Maker) -> Iterator[Example]:
    scales = 0.01 * make.positive(64, dtype=torch.float32)
    yield Example("columns", (make.floats(6, 64), scales), {})
    yield Example("zero points", (make.floats(6, 64), scales, make.integers(-5, 5, 64, dtype=torch.int32)), {})


def _weight_limits(x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor | None = None) -> str | None:
    if weight.dtype != torch.int8 or x.ndim != 2 or weight.ndim != 2 or scale.dtype != x.dtype:
        return f"it takes (M, K), an int8 (K, N) and a scale of x's type, not {weight.dtype} and {scale.dtype}"
    return None if max(x.shape[1], weight.shape[1]) <= INNER_LIMIT else f"a dimension is above {INNER_LIMIT}"


def _weight_call(x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor | None = None) -> FusedCall:
    return FusedCall((x, weight, scale), {"antiquant_offset": offset})


def _weight_examples(make: Maker) -> Iterator[Example]:
    weight, scale = make.integers(-127, 128, 64, 32, dtype=torch.int8), 0.01 * make.positive(32)
    yield Example("symmetric", (make.floats(5, 64), weight, scale), {})
    yield Example("with an offset", (make.floats(5, 64), weight, scale, make.floats(32)), {})


def _swiglu_limits(x: Tensor, weight_scale: Tensor, row_scale: Tensor) -> str | None:
    if x.ndim != 2 or x.shape[1] % 2 or weight_scale.shape != (1, x.shape[1]) or row_scale.shape != x.shape[:1]:
        return f"it takes x (T, 2 I), scales (1, 2 I) and (T,), not {tuple(x.shape)}, {tuple(weight_scale.shape)}"
    return None


def _swiglu_call(x: Tensor, weight_scale: Tensor, row_scale: Tensor) -> FusedCall:
    scales = {"weight_scale": weight_scale, "activation_scale": row_scale}
    return FusedCall((x,), {**scales, "activate_left": True, "quant_mode": 1})


def _swiglu_examples(make: Maker) -> Iterator[Example]:
    x = make.integers(-9999, 9999, 5, 128, dtype=torch.int32)
    scales = (1e-3 * make.positive(1, 128, dtype=torch.float32), make.positive(5, dtype=torch.float32))
    yield Example("a gate first", (x, *scales), {})


QUANT_MATMUL = Operator("npu_quant_matmul", quant_matmul, _call, _examples, dtypes=INTEGERS, limits=_limits)
DYNAMIC_QUANT = Operator(
    "npu_dynamic_quant", dynamic_quant, _dynamic_call, _dynamic_examples, dtypes=HALVES, limits=_dynamic_limits
)
QUANTIZE = Operator(
    "npu_quantize", quantize, _quantize_call, _quantize_examples, dtypes=FLOATS, limits=_quantize_limits
)
WEIGHT_QUANT_MATMUL = Operator(
    "npu_weight_quant_batchmatmul",
    weight_quant_matmul,
    _weight_call,
    _weight_examples,
    dtypes=HALVES,
    limits=_weight_limits,
)
DEQUANT_SWIGLU_QUANT = Operator(
    "npu_dequant_swiglu_quant",
    dequant_swiglu_quant,
    _swiglu_call,
    _swiglu_examples,
    dtypes=(torch.int32,),
    limits=_swiglu_limits,
)
