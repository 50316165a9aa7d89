"""An operator: its meaning in stock torch, the call of torch_npu that computes the same, and where that may be made.

An `Operator` is called like its reference. Tensors on an NPU are given to torch_npu's fused operator if the call is
within its limits, and to the reference otherwise; on every other device it is the reference. `dispatch` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, ParamSpec, TypeVar

import torch

from pangu_modules.ascend.ops import dispatch
from pangu_modules.ascend.ops.examples import Example, Maker

P = ParamSpec("P")
R = TypeVar("R")

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
HALVES = (torch.float16, torch.bfloat16)


class FusedCall(NamedTuple):
    """The exact arguments of a function of torch_npu."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def first(outputs: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the first of an operator's outputs."""
    return outputs[0]


def as_it_is(outputs: Any, *args: Any, **kwargs: Any) -> Any:
    """Return an operator's outputs."""
    return outputs


def no_limits(*args: Any, **kwargs: Any) -> str | None:
    """Find nothing wrong."""
    return None


@dataclass(frozen=True, eq=False)
class Operator(Generic[P, R]):
    """A row of the dispatch table.

    Args:
        symbol: name of the function in torch_npu.
        reference: what is computed, in stock operators; its signature is the operator's.
        call: takes the arguments to those of `symbol`.
        examples: small calls of every form that `call` can produce, for checks of the call and of its numbers.
        dtypes: types of the first tensor that the fused operator takes.
        gradients: ``own``: torch_npu differentiates it; ``recomputed``: it is for inference, and the backward pass is
            the reference's, computed anew; ``none``: it is for inference, and a call that needs gradients is refused.
        limits: returns why this call is outside the fused operator's limits, or None.
        result: takes the outputs of `symbol`, and the operator's own arguments, to what the reference returns.
    """

    symbol: str
    reference: Callable[P, R]
    call: Callable[P, FusedCall]
    examples: Callable[[Maker], Iterable[Example]]
    dtypes: tuple[torch.dtype, ...] = FLOATS
    gradients: Literal["own", "recomputed", "none"] = "none"
    limits: Callable[P, str | None] = no_limits
    result: Callable[..., R] = as_it_is

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.reference.__doc__)
        object.__setattr__(self, "__wrapped__", self.reference)  # for help() and inspect.signature

    @property
    def name(self) -> str:
        """The operator's name: that of its reference."""
        return self.reference.__name__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Compute it: fused where `dispatch` finds that possible, by the reference otherwise."""
        settings = dispatch.SETTINGS
        # A call on another device costs no more than this line; the first argument of every operator is a tensor.
        if settings.simple and args and args[0].device.type != settings.device_type:  # type: ignore[attr-defined]
            return self.reference(*args, **kwargs)
        return dispatch.run(self, args, kwargs)

    def explain(self, *args: P.args, **kwargs: P.kwargs) -> dispatch.Explanation:
        """Say whether this call would be fused, and if not, why."""
        return dispatch.explain_call(self, args, kwargs)

    def __repr__(self) -> str:
        return f"<operator {self.name}, fused by torch_npu.{self.symbol}>"
