"""Rotary position embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from pangu_modules.ascend.ops.examples import Example, Maker
from pangu_modules.ascend.ops.operator import FusedCall, Operator

Layout = Literal["BNSD", "BSND", "SBND"]
PLACES = {"BNSD": (0, 1, 2), "BSND": (0, 2, 1), "SBND": (1, 2, 0)}  # of batch, heads and positions
MAX_BATCH_OR_HEADS = 1000  # below
MAX_HEAD_DIM = 896  # below
MAX_TABLE_GRADIENT_ROWS = 1024  # batch times heads, where cos and sin need gradients


def rotary_mul(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, layout: Layout = "BNSD") -> Tensor:
    """Return ``x * cos + rotated(x) * sin``.

    Args:
        x: four dimensions: batch B, heads N, positions S, width D in the order of `layout`.
        cos: as many dimensions, 1 where it is shared; D wide.
        sin: as cos.
        interleaved: whether neighbours form a pair, (-x1, x0, -x3, x2 ...), or halves: (-second half, first half).
        layout: order of x's dimensions.
    """
    return x * cos + (_rotated_pairs(x) if interleaved else _rotated_halves(x)) * sin


def apply_rotary_pos_emb_(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys in place by halves, and return them.

    Args:
        query: (B, S, N, D).
        key: (B, S, its heads, D).
        cos: (B, S, 1, D).
        sin: as cos.
    """
    return query.copy_(rotary_mul(query, cos, sin)), key.copy_(rotary_mul(key, cos, sin))


def _rotated_halves(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def _rotated_pairs(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def _limits(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, layout: Layout = "BNSD") -> str | None:
    shape, table = x.shape, cos.shape
    if len(shape) != 4 or len(table) != 4 or table != sin.shape or table[3] != shape[3]:
        return f"it takes x, cos and sin of four dimensions and one width, not {tuple(shape)} and {tuple(table)}"
    if not x.dtype == cos.dtype == sin.dtype:
        return f"x is {x.dtype} and cos {cos.dtype}, and it takes one type"
    if shape[3] % 2 or shape[3] >= MAX_HEAD_DIM:
        return f"heads are {shape[3]} wide, and it takes even widths below {MAX_HEAD_DIM}"
    b, n, s = PLACES[layout]
    rows = shape[b] * shape[n]
    if shape[b] >= MAX_BATCH_OR_HEADS or shape[n] >= MAX_BATCH_OR_HEADS:
        return f"batch {shape[b]} or heads {shape[n]} is not below {MAX_BATCH_OR_HEADS}"
    if table[b] == table[n] == 1 and table[s] == shape[s]:
        if interleaved and rows >= MAX_BATCH_OR_HEADS:
            return f"pairs need fewer than {MAX_BATCH_OR_HEADS} of batch and heads together"
    elif table[b] != shape[b] or table[n] not in (1, shape[n]) or table[s] != shape[s]:
        return f"cos of shape {tuple(table)} is not shared as it takes it for x of {tuple(shape)} in {layout}"
    elif interleaved:
        return "pairs need one table for batch and heads"
    if (cos.requires_grad or sin.requires_grad) and torch.is_grad_enabled() and rows > MAX_TABLE_GRADIENT_ROWS:
        return f"cos needs gradients and batch times heads is above {MAX_TABLE_GRADIENT_ROWS}"
    return None


def _call(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, layout: Layout = "BNSD") -> FusedCall:
    return FusedCall((x, cos, sin), {"rotary_mode": "interleave" if interleaved else "half"})


def _examples(make: Maker) -> Iterator[Example]:
    for name, layout, x, table in (
        ("heads first", "BNSD", (2, 3, 5, 16), (1, 1, 5, 16)),
        ("heads first, a table for each sequence", "BNSD", (2, 3, 5, 16), (2, 1, 5, 16)),
        ("positions first", "BSND", (2, 5, 3, 16), (1, 5, 1, 16)),
        ("positions before the batch", "SBND", (5, 2, 3, 16), (5, 1, 1, 16)),
    ):
        angles = make.floats(*table, dtype=torch.float32)
        cos, sin = angles.cos().to(make.dtype), angles.sin().to(make.dtype)
        yield Example(name, (make.floats(*x), cos, sin), {"layout": layout})
        if table.count(1) == 2:
            yield Example(f"pairs, {name}", (make.floats(*x), cos, sin), {"layout": layout, "interleaved": True})


def _in_place_limits(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> str | None:
    if query.ndim != 4 or key.ndim != 4 or query.shape[-1] not in (64, 128):
        return f"it takes (B, S, N, D) with D 64 or 128, not {tuple(query.shape)}"
    if len({query.dtype, key.dtype, cos.dtype, sin.dtype}) > 1:
        return "query, key, cos and sin differ in type"
    if not query.numel() or not key.numel():
        return "there is no token"
    table = (*query.shape[:2], 1, query.shape[-1])
    return None if tuple(cos.shape) == table == tuple(sin.shape) else f"it takes cos of {table}, not {tuple(cos.shape)}"


def _in_place_call(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> FusedCall:
    return FusedCall((query, key, cos, sin), {"layout": "BSND", "rotary_mode": "half"})


def _in_place_examples(make: Maker) -> Iterator[Example]:
    angles = make.floats(2, 3, 1, 64, dtype=torch.float32)
    cos, sin = angles.cos().to(make.dtype), angles.sin().to(make.dtype)
    yield Example("grouped queries", (make.floats(2, 3, 4, 64), make.floats(2, 3, 2, 64), cos, sin), {})


ROTARY_MUL = Operator("npu_rotary_mul", rotary_mul, _call, _examples, gradients="own", limits=_limits)
APPLY_ROTARY_POS_EMB_ = Operator(
    "npu_apply_rotary_pos_emb", apply_rotary_pos_emb_, _in_place_call, _in_place_examples, limits=_in_place_limits
)
