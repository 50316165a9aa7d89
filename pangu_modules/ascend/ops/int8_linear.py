"""Linear layers in int8 for inference (W8A8): weights by output channel, activations by token when they arrive."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor, nn

from pangu_modules.ascend.ops.int8 import DYNAMIC_QUANT, QUANT_MATMUL, dynamic_quant


class Int8Linear(nn.Module):
    """``x weight^T * scale + bias`` with int8 factors; (..., in) to (..., out), for inference.

    Buffers: ``weight`` (out, in) int8 and ``scale`` (out,) float32; ``bias`` (out,) as in the layer it comes from.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        bias: its values, or None.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: Tensor | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.zeros(out_features))
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, layer: nn.Linear) -> Self:
        """Return the int8 form of a layer, on its device; each row's largest weight becomes 127."""
        bias = None if layer.bias is None else layer.bias.detach().clone()
        quantized = cls(layer.in_features, layer.out_features, bias).to(layer.weight.device)
        quantized.weight, quantized.scale = dynamic_quant(layer.weight.detach())
        return quantized

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, in the type of `x`.

        Raises:
            ValueError: a gradient is asked for.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError("int8 layers are for inference and have no gradients: run the model under torch.no_grad()")
        rows, row_scale = DYNAMIC_QUANT(x.reshape(-1, self.in_features))
        output = QUANT_MATMUL(rows, self.weight.t(), self.scale, row_scale, None, x.dtype)
        output = output if self.bias is None else output + self.bias.to(x.dtype)
        return output.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Name the sizes in `repr`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


@torch.no_grad()
def quantize_linears(model: nn.Module, skip: Iterable[str] = ("lm_head",)) -> int:
    """Replace a model's linear layers by `Int8Linear`, in place, and return how many.

    Args:
        model: any module; only layers of the very class `torch.nn.Linear` are replaced.
        skip: parts of names of layers that stay, such as the head, whose errors no later layer corrects.

    Raises:
        ValueError: there is no such layer.
    """
    skip = tuple(skip)
    found = [
        (name, layer)
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and name and not any(part in name for part in skip)
    ]
    if not found:
        raise ValueError(
            f"there is no torch.nn.Linear to quantize outside {', '.join(skip) or 'nothing'}: check `skip`"
        )
    for name, layer in found:
        model.set_submodule(name, Int8Linear.of(layer))
    return len(found)
