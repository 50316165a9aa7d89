"""Products of rows, sorted by expert, with a matrix of each expert; neither is differentiated: see `fusing.seams`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pangu_modules.ascend.ops.examples import Example, Maker
from pangu_modules.ascend.ops.operator import FusedCall, Operator, first

INNER_LIMIT = 65_536  # last dimensions stay below
ROWS_IN_GROUPS = 0
SUM_IN_GROUPS = 2
ONE_OUTPUT = 3
CUMULATIVE = 0


def grouped_matmul(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Return ``rows[s] @ weight[e]`` for the expert e of each row, (S, b).

    Args:
        rows: (S, a), sorted by expert.
        weight: (E, a, b); may be a transposed view.
        ends: (E,) integers, one past the last row of each expert.
    """
    output = rows.new_empty(rows.shape[0], weight.shape[2])
    for expert, part in enumerate([] if rows.is_meta else _parts(ends)):
        output[part] = rows[part] @ weight[expert]
    return output


def grouped_outer(rows: Tensor, other: Tensor, ends: Tensor) -> Tensor:
    """Return ``rows_e^T @ other_e`` of each expert's rows, (E, a, b): the gradient of `grouped_matmul`'s weight.

    Args:
        rows: (S, a), sorted by expert.
        other: (S, b).
        ends: as in `grouped_matmul`.
    """
    if rows.is_meta:
        return rows.new_empty(ends.shape[0], rows.shape[1], other.shape[1])
    return torch.stack([rows[part].t() @ other[part] for part in _parts(ends)])


def _parts(ends: Tensor) -> list[slice]:
    last = ends.tolist()
    return [slice(first, end) for first, end in zip([0, *last[:-1]], last, strict=True)]


def _limits(rows: Tensor, weight: Tensor, ends: Tensor) -> str | None:
    if rows.dtype != weight.dtype:
        return f"the rows are {rows.dtype} and the other factor {weight.dtype}"
    inner = weight.shape[1:]  # of the experts' matrices, or of what is multiplied to them
    if max(rows.shape[1], *inner) >= INNER_LIMIT:
        return f"a dimension is not below {INNER_LIMIT}"
    return None if rows.shape[0] else "there is no row"


def _call(rows: Tensor, weight: Tensor, ends: Tensor) -> FusedCall:
    return FusedCall(([rows], [weight]), _grouping(ends, ROWS_IN_GROUPS))


def _outer_call(rows: Tensor, other: Tensor, ends: Tensor) -> FusedCall:
    return FusedCall(([rows.t()], [other]), _grouping(ends, SUM_IN_GROUPS))


def _grouping(ends: Tensor, group_type: int) -> dict[str, Any]:
    return {
        "group_list": ends.to(torch.int64),
        "split_item": ONE_OUTPUT,
        "group_type": group_type,
        "group_list_type": CUMULATIVE,
    }


def _examples(make: Maker) -> Iterator[Example]:
    ends = make.given([2, 2, 7], torch.int32)  # the second expert has no row
    yield Example("an expert without rows", (make.floats(7, 8), make.floats(3, 8, 16), ends), {})
    yield Example("transposed", (make.floats(7, 8), make.floats(3, 16, 8).transpose(1, 2), ends), {})


def _outer_examples(make: Maker) -> Iterator[Example]:
    ends = make.given([2, 2, 7], torch.int32)
    yield Example("an expert without rows", (make.floats(7, 8), make.floats(7, 16), ends), {})


GROUPED_MATMUL = Operator("npu_grouped_matmul", grouped_matmul, _call, _examples, limits=_limits, result=first)
GROUPED_OUTER = Operator(
    "npu_grouped_matmul", grouped_outer, _outer_call, _outer_examples, limits=_limits, result=first
)
