"""Accumulators over calibration tokens: column moments and covariances, streamed batch by batch.

Products and column sums of one batch are taken in float32 (float64 for a float64 model); sums over batches,
covariances and everything derived from them are float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def exact_device(device: torch.device) -> torch.device:
    """Return where float64 arithmetic for tensors of `device` happens: the CPU for devices that lack it."""
    return torch.device("cpu") if device.type in ("mps", "npu") else device


def wide(values: Tensor) -> Tensor:
    """Return the values in at least float32."""
    return values if values.dtype == torch.float64 else values.float()


NUM_BLOCKS = 4
"""Column blocks of a symmetric product: 4 take 0.67 of the full product's time, 6 take 0.65."""


class ColumnMoments:
    """Per-column sums over tokens: of x, x^2 and |x|.

    Args:
        size: number of columns.
        device: device of the tensors to come.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.count = 0
        self.sum, self.square_sum, self.absolute_sum = torch.zeros(
            3, size, dtype=torch.float64, device=exact_device(device)
        )

    def update(self, x: Tensor) -> None:
        """Add tokens x: (tokens, size)."""
        x = wide(x)
        self.count += len(x)
        # Sums of a product instead of vector_norm(dim=0), which takes 13 times as long on a CPU.
        self.sum += x.sum(0).to(self.sum)
        self.square_sum += x.square().sum(0).to(self.sum)
        self.absolute_sum += x.abs().sum(0).to(self.sum)

    @property
    def norm(self) -> Tensor:
        """Column norms ``sqrt(sum_t x^2)``, (size,)."""
        return self.square_sum.sqrt()

    @property
    def mean(self) -> Tensor:
        """Column means, (size,)."""
        return self.sum / self.count

    @property
    def variance(self) -> Tensor:
        """Population variances, (size,)."""
        return (self.square_sum / self.count - self.mean.square()).clamp_min(0)


class StreamingCovariance:
    """Population cross-covariance of x and y (of x with itself if y is left out) over tokens.

    Tokens are shifted by the first batch's mean, so that large means do not cost digits.

    Args:
        size: columns of x.
        device: device of the tensors to come.
        other_size: columns of y; None for the covariance of x with itself.
    """

    def __init__(self, size: int, device: torch.device, other_size: int | None = None) -> None:
        place = exact_device(device)
        self.count = 0
        self.sum_x = torch.zeros(size, dtype=torch.float64, device=place)
        self.sum_y = self.sum_x if other_size is None else torch.zeros(other_size, dtype=torch.float64, device=place)
        # Of x with itself only the blocks on and above the diagonal are summed: a third of the work less.
        self._products = torch.zeros(size, other_size or size, dtype=torch.float64, device=place)
        self._symmetric = other_size is None
        self._shifts: tuple[Tensor, Tensor] | None = None

    def update(self, x: Tensor, y: Tensor | None = None) -> None:
        """Add tokens x: (tokens, size) and y: (tokens, other_size)."""
        x = wide(x)
        other = x if y is None else wide(y)
        if self._shifts is None:
            self._shifts = (x.mean(0), other.mean(0))
        shifted_x = x - self._shifts[0]
        shifted_y = shifted_x if y is None else other - self._shifts[1]
        self.count += len(x)
        if y is None:
            self._add_upper(shifted_x)
        else:
            self._products += (shifted_x.T @ shifted_y).to(self._products)
        self.sum_x += shifted_x.sum(0).to(self.sum_x)
        if y is not None:
            self.sum_y += shifted_y.sum(0).to(self.sum_y)

    def _add_upper(self, x: Tensor) -> None:
        size = x.shape[1]
        width = -(-size // NUM_BLOCKS)
        for start in range(0, size, width):
            stop = min(start + width, size)
            self._products[start:stop, start:] += (x[:, start:stop].T @ x[:, start:]).to(self._products)

    @property
    def products(self) -> Tensor:
        """Sums over tokens of the products of shifted columns, (size, other_size)."""
        if not self._symmetric:
            return self._products.clone()
        whole = self._products.triu()
        for column in range(1, whole.shape[0]):  # by columns: a mirrored copy would take as much memory again
            whole[column, :column] = whole[:column, column]
        return whole

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Means of x and of y, (size,) and (other_size,)."""
        assert self._shifts is not None
        shift_x, shift_y = (shift.to(self.sum_x) for shift in self._shifts)
        return shift_x + self.sum_x / self.count, shift_y + self.sum_y / self.count

    @property
    def covariance(self) -> Tensor:
        """The matrix ``mean_t (x - mean x)(y - mean y)^T``, (size, other_size)."""
        return self.products.div_(self.count).addr_(self.sum_x / self.count, self.sum_y / self.count, alpha=-1)

    @property
    def second_moment(self) -> Tensor:
        """The matrix ``mean_t x y^T``, means not removed, (size, other_size)."""
        return self.covariance + torch.outer(*self.means)
