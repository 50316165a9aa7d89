"""Gradients for operators that torch_npu has for inference alone: the backward pass runs the reference again.

The reference is of stock operators, which the NPU differentiates; its forward pass is repeated, and what it keeps for
the backward pass is not held in the meantime.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from pangu_modules.ascend.ops.dispatch import call_library

if TYPE_CHECKING:
    from pangu_modules.ascend.ops.operator import Operator


def recomputed(operator: Operator[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the fused operator so that gradients flow through its reference."""
    bound = inspect.signature(operator.reference).bind(*args, **kwargs)
    bound.apply_defaults()
    return _Recomputed.apply(operator, bound.kwargs, *bound.args)


class _Recomputed(Function):
    @staticmethod
    def forward(ctx: Any, operator: Operator[Any, Any], kwargs: dict[str, Any], *args: Any) -> Any:
        outputs = call_library(operator, args, kwargs)
        ctx.operator, ctx.kwargs = operator, kwargs
        ctx.save_for_backward(*(value for value in args if isinstance(value, Tensor)))
        ctx.others = [None if isinstance(value, Tensor) else (value,) for value in args]
        several = outputs if isinstance(outputs, tuple) else (outputs,)
        ctx.mark_non_differentiable(*(output for output in several if not output.is_floating_point()))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        saved = iter(ctx.saved_tensors)
        values = [next(saved).detach() if other is None else other[0] for other in ctx.others]
        inputs = [value.requires_grad_() for value, need in zip(values, needed, strict=True) if need]
        with torch.enable_grad():
            outputs = ctx.operator.reference(*values, **ctx.kwargs)
        several = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(output, grad) for output, grad in zip(several, grads, strict=True) if output.requires_grad]
        found = torch.autograd.grad(
            [output for output, _ in pairs], inputs, [grad for _, grad in pairs], allow_unused=True
        )
        gradients = iter(found)
        return None, None, *(next(gradients) if need else None for need in needed)
