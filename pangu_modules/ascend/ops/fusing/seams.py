"""The places where this library's own models take a fused operator of a device: the registry's kind ``seam``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pangu_modules.ascend.ops import dispatch
from pangu_modules.ascend.ops.grouped import GROUPED_MATMUL, GROUPED_OUTER
from pangu_modules.ascend.ops.losses import CROSS_ENTROPY
from pangu_modules.ascend.ops.routing import route_in_groups
from pangu_modules.common import registry


def both_products(rows: Tensor, other: Tensor, ends: Tensor) -> Tensor:
    """Multiply each expert's rows by its matrix, or by its rows of another factor; see the seam."""
    return (GROUPED_MATMUL if other.ndim == 3 else GROUPED_OUTER)(rows, other, ends)


FILLINGS: dict[str, Callable[..., Any]] = {
    "grouped_matmul": both_products,
    "grouped_routing": route_in_groups,
    "cross_entropy": CROSS_ENTROPY,
}


def fill_seams(device_type: str | None = None) -> None:
    """Put the fused operators into the seams, for the NPU unless another device is named."""
    for name, filling in FILLINGS.items():
        registry.load("seam", name)[device_type or dispatch.SETTINGS.device_type] = filling


def empty_seams(device_type: str | None = None) -> None:
    """Take out what `fill_seams` put in."""
    for name in FILLINGS:
        registry.load("seam", name).pop(device_type or dispatch.SETTINGS.device_type, None)
