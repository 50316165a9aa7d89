"""Checks of one operator of the dispatch table; the tests run them over the table, and over mutations of it."""

from __future__ import annotations

import torch
from npu_emulator import ContractError, NpuEmulator
from torch import Tensor

from pangu_modules.ascend.ops import dispatch
from pangu_modules.ascend.ops.examples import Maker
from pangu_modules.ascend.ops.schemas import misfit

# Largest difference between the reference in a type and the emulated operator, which rounds once, relative to the
# larger of 1 and the value: one to three roundings of the type (bfloat16 2^-8, float16 2^-11); seen 0.7 of these.
ROUNDING = {torch.float32: 1e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2, torch.float64: 1e-12}
INT8_STEPS = 1


def examples(operator, dtype, device="cpu"):
    """The operator's examples; an operator of integers has floating-point arguments in bfloat16."""
    return list(operator.examples(Maker(dtype if dtype.is_floating_point else torch.bfloat16, device)))


def several(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def check_signature(operator, signatures=None):
    """Every call has the names and kinds of arguments of torch_npu's signature."""
    for dtype in operator.dtypes:
        for example in examples(operator, dtype, "meta"):
            call = operator.call(*example.args, **example.kwargs)
            reason = misfit(operator.symbol, call.args, call.kwargs, signatures)
            if reason is not None:
                raise ContractError(f"{example.name}: {reason}")


def check_numbers(operator):
    """The mapped call, computed as torch_npu's documents say, is what the reference computes."""
    for dtype in operator.dtypes:
        for example, again in zip(examples(operator, dtype), examples(operator, dtype), strict=True):
            wanted = several(operator.reference(*detached(again.args), **again.kwargs))
            with through(NpuEmulator()):
                found = several(dispatch.call_library(operator, detached(example.args), example.kwargs))
            for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
                if operator.name.startswith("token_permute") and place == 1:
                    continue  # opaque: see the operator
                compare(one, other, f"{operator.name}, {example.name}, {dtype}, result {place}")


def detached(args):
    return tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)


def compare(found, wanted, where):
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        raise ContractError(
            f"{where}: {tuple(found.shape)} in {found.dtype}, not {tuple(wanted.shape)} in {wanted.dtype}"
        )
    difference = (found.double() - wanted.double()).abs()
    if not found.is_floating_point():
        allowed = INT8_STEPS if found.dtype == torch.int8 else 0
        bound = torch.full_like(difference, allowed)
    else:
        bound = ROUNDING[found.dtype] * wanted.double().abs().clamp(min=1)
    if not bool((difference <= bound).all()):
        raise ContractError(f"{where}: differs by {difference.max():.3g}")


class through:
    """Fused operators are those of a module, for tensors on the CPU."""

    def __init__(self, library, device_type="cpu", mode="auto"):
        self.given = (library, device_type, mode)

    def __enter__(self):
        settings = dispatch.SETTINGS
        self.before = (settings.library, settings.device_type, settings.mode)
        settings.library, settings.device_type, mode = self.given
        settings.set_mode(mode)
        return self.given[0]

    def __exit__(self, *error):
        settings = dispatch.SETTINGS
        settings.library, settings.device_type, mode = self.before
        settings.set_mode(mode)
