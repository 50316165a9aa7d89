"""PackedBinaryLinear: a linear layer whose weights are bits, +1 or -1 times a scale per row, for inference."""

from __future__ import annotations

import functools
import warnings
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pangu_modules.llm.onebit import kernel
from pangu_modules.llm.onebit.layer import InputScaledLinear

KERNEL_TOKENS = 8
"""Up to so many tokens the kernel works on the bits; for more, unpacking the layer once and a GEMM is faster."""


class PackedBinaryLinear(nn.Module):
    """``y = (x * in_scale) @ (scale * signs).T + bias`` with signs of one bit; it has no gradient, not even for `x`.

    On the CPU a few tokens are computed from the bits by a compiled kernel; for many, and on other devices, the layer
    is unpacked and dropped again. The kernel computes in float32, whatever the type of `x`, and returns that type.

    Buffers: ``packed`` (out_features, ceil(in_features / 8)) uint8, see `pack_signs`; ``scale`` (out_features,)
    float32, of which ``.to(dtype)`` would lose digits; ``bias`` (out_features,) or None; ``in_scale`` (in_features,)
    or None.

    Args:
        in_features: inputs.
        out_features: rows.
        bias: whether there is a bias.
        in_scale: whether inputs are scaled.
        device: of the buffers, which are not initialised.
    """

    packed: Tensor
    scale: Tensor
    bias: Tensor | None
    in_scale: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        in_scale: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        stride = (in_features + 7) // 8
        self.register_buffer("packed", torch.empty(out_features, stride, dtype=torch.uint8, device=device))
        self.register_buffer("scale", torch.empty(out_features, device=device))
        self.register_buffer("bias", torch.empty(out_features, device=device) if bias else None)
        self.register_buffer("in_scale", torch.empty(in_features, device=device) if in_scale else None)

    @classmethod
    def from_linear(cls, linear: nn.Module, name: str = "the layer") -> Self:
        """Return the packed form of a binarized layer: exact, `to_linear` gives the same weight back.

        Args:
            linear: an `nn.Linear`; each row of its weight, at most float32, holds one number and its negative.
            name: of the layer, for messages.

        Raises:
            ValueError: it is another layer, or a row has other values.
        """
        scale = binary_scale(linear, name)
        assert isinstance(linear, nn.Linear)  # what has a scale
        packed = cls(linear.in_features, linear.out_features, device="meta")
        packed.packed, packed.scale = pack_signs(linear.weight.detach()), scale.clone()
        packed.bias = None if linear.bias is None else linear.bias.detach()
        packed.in_scale = linear.in_scale if isinstance(linear, InputScaledLinear) else None
        return packed

    def to_linear(self) -> nn.Linear:
        """Return the same layer with a dense weight in float32."""
        kind = nn.Linear if self.in_scale is None else InputScaledLinear
        linear = kind(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.dense_weight())
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias)
        if isinstance(linear, InputScaledLinear) and self.in_scale is not None:
            linear.in_scale = self.in_scale
        return linear

    def dense_weight(self) -> Tensor:
        """Return the dense weight, (out_features, in_features) float32."""
        scale = self.scale.float()
        if self.packed.device.type == "cpu":
            weight = kernel.unpack(self.packed, scale, self.in_features)
            if weight is not None:
                return weight
        signs = unpack_signs(self.packed, self.in_features)
        return torch.where(signs, scale[:, None], -scale[:, None])

    def forward(self, x: Tensor) -> Tensor:
        """Return the product, (..., out_features), in the type of `x`, (..., in_features); without gradient."""
        in_scale, bias = self.in_scale, self.bias
        if in_scale is not None:
            x = x * in_scale.to(x.dtype)
        if x.device.type == "cpu" and 0 < x.numel() <= KERNEL_TOKENS * self.in_features:
            values = x.float()
            if self.in_features % 8:
                values = F.pad(values, (0, -self.in_features % 8))
            bias32 = None if bias is None else bias.float()
            y = kernel.packed_linear(values.contiguous(), self.packed, self.scale.float(), bias32)
            if y is not None:
                return y if x.dtype == torch.float32 else y.to(x.dtype)
        elif x.device.type not in ("cpu", "meta"):
            _tell_unpacking(x.device.type)
        return F.linear(x.detach(), self.dense_weight().to(x.dtype), None if bias is None else bias.to(x.dtype))

    def extra_repr(self) -> str:
        """Return the sizes, as ``nn.Linear`` shows them."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def binary_scale(linear: nn.Module, name: str) -> Tensor:
    """Return the scale of each row of a binarized layer, (out_features,) float32, at least 0.

    Raises:
        ValueError: it is no linear layer, or a row holds more than one magnitude.
    """
    if not isinstance(linear, nn.Linear):
        raise ValueError(
            f"{name} is a {type(linear).__name__}, not a plain linear layer: finalize the binarization (training does "
            "it at its end) before packing or exporting"
        )
    magnitudes = linear.weight.detach().abs()
    scale = magnitudes[:, 0]
    wrong = (~(magnitudes == scale[:, None]).all(dim=1)).nonzero().flatten().tolist()
    if wrong:
        values = linear.weight[wrong[0]].unique().numel()
        raise ValueError(
            f"{name} is not binary: row {wrong[0]} holds {values} values instead of two ({len(wrong)} such rows of "
            f"{len(scale)}); finalize the binarization (training does it at its end) before packing or exporting"
        )
    return scale.float()


def pack_signs(weight: Tensor) -> Tensor:
    """Return the signs as bits, (rows, ceil(columns / 8)) uint8: column j is bit j % 8 of byte j // 8, 1 for plus.

    Zero counts as plus; bits beyond the last column are 0. The order is that of llama.cpp's Q1_0.
    """
    bits = F.pad((weight >= 0).to(torch.uint8), (0, -weight.shape[1] % 8))
    places = 1 << torch.arange(8, dtype=torch.uint8, device=weight.device)
    return (bits.unflatten(1, (-1, 8)) * places).sum(-1, dtype=torch.uint8)


def unpack_signs(packed: Tensor, columns: int) -> Tensor:
    """Return what `pack_signs` packed, (rows, columns) bool, True for plus."""
    places = 1 << torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] & places) != 0).flatten(1)[:, :columns]


@functools.cache
def _tell_unpacking(device: str) -> None:
    warnings.warn(
        f"packed binary layers have a kernel for the CPU only; on {device} each forward unpacks every layer, which "
        "saves memory but no time",
        stacklevel=3,
    )
