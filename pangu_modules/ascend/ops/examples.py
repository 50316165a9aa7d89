"""Small calls of each operator: what its contract, its numbers and its predicted cost are checked with."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Example(NamedTuple):
    """One call of an operator, by its own signature."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Maker:
    """Makes the tensors of examples: seeded numbers, or on the meta device none.

    Args:
        dtype: type of floating-point tensors.
        device: where they lie.
    """

    def __init__(self, dtype: torch.dtype, device: str = "cpu") -> None:
        self.dtype = dtype
        self.device = device
        self._generator = torch.Generator().manual_seed(0)

    def floats(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return normally distributed numbers."""
        return self._placed(torch.randn(shape, generator=self._generator), dtype or self.dtype)

    def positive(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return numbers from [0.5, 1.5)."""
        return self._placed(0.5 + torch.rand(shape, generator=self._generator), dtype or self.dtype)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Return integers from [low, high)."""
        return self._placed(torch.randint(low, high, shape, generator=self._generator), dtype)

    def choices(self, rows: int, count: int, k: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Return k different numbers below `count` for each row, (rows, k)."""
        return self._placed(torch.rand(rows, count, generator=self._generator).argsort(-1)[:, :k], dtype)

    def given(self, values: Any, dtype: torch.dtype) -> Tensor:
        """Return these values."""
        return self._placed(torch.tensor(values), dtype)

    def _placed(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        return tensor.to(dtype).to(self.device).contiguous()
