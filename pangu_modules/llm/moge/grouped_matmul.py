"""Each expert's rows times its own matrix: torch's grouped product, a loop, or a device's fused operator.

Legend: S rows, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ExpertsImplementation = Literal["auto", "grouped_mm", "loop", "reference"]

ALIGNMENT_BYTES = 16  # grouped_mm wants rows of a multiple of this
FEW_ROWS = 4  # on a CPU, below one row for this many experts, it pays to visit only the experts that have one

GROUPED_MATMUL: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {}
"""Fused operators by device type (``"npu"``); each follows the contract of `grouped_matmul` and is used for both of
its forms."""


def grouped_matmul(
    rows: Tensor, other: Tensor, ends: Tensor, *, implementation: ExpertsImplementation = "auto"
) -> Tensor:
    """Multiply each expert's rows by its own matrix: the seam for a fused operator (`GROUPED_MATMUL`).

    Two forms, by the dimensions of `other`; expert e has rows ``ends[e-1]:ends[e]``, maybe none:

    - other (E, a, b): (S, a) x (E, a, b) -> (S, b), row by row ``rows[s] @ other[e]``.
    - other (S, b): (S, a) x (S, b) -> (E, a, b), ``rows_e^T @ other_e``, 0 for an expert without rows.

    Both results are new and contiguous. It is not differentiated: the backward pass calls it itself.

    Args:
        rows: (S, a), sorted by expert.
        other: see above; (E, a, b) may be a transposed view.
        ends: (E,) int32 cumulative counts; the last is S.
        implementation: ``grouped_mm``, ``loop`` (expert by expert), or ``auto``: a fused operator of the device,
            otherwise grouped_mm, otherwise the loop: where grouped_mm does not take the sizes or the type, and for the
            few rows of one decoded token on a CPU.
    """
    fused = GROUPED_MATMUL.get(rows.device.type) if implementation == "auto" else None
    if fused is not None:
        return fused(rows, other, ends)
    if rows.is_meta:
        return _on_meta(rows, other, ends)
    few = implementation == "auto" and rows.is_cpu and other.ndim == 3 and FEW_ROWS * len(rows) < len(ends)
    if implementation == "loop" or not aligned(rows, other) or (few and not torch.compiler.is_compiling()):
        return _grouped_loop(rows, other, ends)
    return F.grouped_mm(rows if other.ndim == 3 else rows.t(), other, offs=ends)


def aligned(rows: Tensor, other: Tensor) -> bool:
    """Return whether grouped_mm takes these sizes and this type."""
    widths = (rows.shape[1], other.shape[-1])
    return rows.dtype != torch.float64 and all(width * rows.element_size() % ALIGNMENT_BYTES == 0 for width in widths)


def check_alignment(down_proj: Tensor) -> None:
    """Refuse sizes and types that grouped_mm does not take."""
    hidden, inner = down_proj.shape[1:]
    if down_proj.dtype == torch.float64 or hidden % 8 or inner % 8:
        raise ValueError(
            "experts_implementation='grouped_mm' needs hidden_size and moe_intermediate_size divisible by 8 and no "
            f"float64, got {hidden}, {inner} and {down_proj.dtype}: take 'auto', which falls back to a loop"
        )


def _grouped_loop(rows: Tensor, other: Tensor, ends: Tensor) -> Tensor:
    bounds = [0, *ends.tolist()]
    parts = [slice(first, last) for first, last in pairwise(bounds)]
    if other.ndim == 2:
        output = rows.new_empty(len(parts), rows.shape[1], other.shape[1])
        for expert, part in enumerate(parts):
            torch.mm(rows[part].t(), other[part], out=output[expert])  # of no rows: zeros
        return output
    output = rows.new_empty(rows.shape[0], other.shape[2])
    for expert, part in enumerate(parts):
        if part.stop > part.start:
            torch.mm(rows[part], other[expert], out=output[part])
    return output


def _on_meta(rows: Tensor, other: Tensor, ends: Tensor) -> Tensor:
    """Return the shape, by a product of as many operations: FLOPs are counted on the meta device."""
    if other.ndim == 3:
        return rows @ other[0]
    return (rows.t() @ other).expand(ends.shape[0], -1, -1)
