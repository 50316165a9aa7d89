"""Where an operator runs: fused on the NPU, or by its reference; the one setting `fused_ops`, and `explain`.

``auto`` fuses what can be fused and says once for each operator and reason what cannot; ``on`` raises instead; ``off``
takes references. The setting holds for the process: backward passes run in threads of their own.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pangu_modules.ascend.ops.operator import Operator

FusedOps = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Explanation:
    """Whether a call is fused.

    Args:
        operator: its name.
        symbol: the function of torch_npu.
        reason: why it is not fused; None if it is.
        remedy: what to do about that; None if nothing can or need be done.
    """

    operator: str
    symbol: str
    reason: str | None = None
    remedy: str | None = None

    @property
    def fused(self) -> bool:
        """Whether torch_npu's operator is called."""
        return self.reason is None

    def __str__(self) -> str:
        if self.fused:
            return f"{self.operator}: fused, torch_npu.{self.symbol}"
        return f"{self.operator}: reference, because {self.reason}" + (f"; {self.remedy}" if self.remedy else "")


class _Recorder(list[Explanation]):
    def __init__(self, as_if_on_npu: bool) -> None:
        super().__init__()
        self.as_if_on_npu = as_if_on_npu


class Settings:
    """What `run` goes by.

    Args:
        device_type: where fused operators are looked for.
        library: module with the fused operators; None for torch_npu, if that is loaded.
    """

    def __init__(self, device_type: str = "npu", library: Any = None) -> None:
        self.device_type = device_type
        self.library = library
        self.mode: FusedOps = "auto"
        self.recorder: _Recorder | None = None
        self.simple = True  # whether calls on other devices need no look: they are neither refused nor recorded
        self.warned: set[tuple[str, str]] = set()

    def set_mode(self, mode: FusedOps) -> None:
        """Set ``auto``, ``on`` or ``off``."""
        if mode not in get_args(FusedOps):
            raise ValueError(f"fused_ops={mode!r}: give 'auto', 'on' or 'off'")
        self.mode = mode
        self.simple = mode != "on" and self.recorder is None

    def set_recorder(self, recorder: _Recorder | None) -> None:
        """Let explanations of all calls be collected, see `recorded`; None: no longer."""
        self.recorder = recorder
        self.simple = self.mode != "on" and recorder is None


SETTINGS = Settings()


def set_fused_ops(mode: FusedOps) -> None:
    """Set for the process whether operators are fused: auto, on or off.

    Raises:
        ValueError: none of the three.
    """
    SETTINGS.set_mode(mode)


@contextmanager
def fused_ops(mode: FusedOps) -> Iterator[None]:
    """Set whether operators are fused inside a ``with`` statement; for the whole process, see the module."""
    before = SETTINGS.mode
    SETTINGS.set_mode(mode)
    try:
        yield
    finally:
        SETTINGS.set_mode(before)


@contextmanager
def recorded(*, as_if_on_npu: bool = True) -> Iterator[list[Explanation]]:
    """Collect an explanation of each call inside a ``with`` statement; references are run.

    Args:
        as_if_on_npu: explain what would happen with the same tensors on an NPU.
    """
    outer, explanations = SETTINGS.recorder, _Recorder(as_if_on_npu)
    SETTINGS.set_recorder(explanations)
    try:
        yield explanations
    finally:
        SETTINGS.set_recorder(outer)


def run(operator: Operator[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator where the setting says.

    Raises:
        ValueError: ``fused_ops="on"``, and this call cannot be fused.
    """
    recorder = SETTINGS.recorder
    if recorder is not None:
        recorder.append(explain_call(operator, args, kwargs, as_if_on_npu=recorder.as_if_on_npu))
        return operator.reference(*args, **kwargs)
    if SETTINGS.mode == "off":
        return operator.reference(*args, **kwargs)
    refused = refusal(operator, args, kwargs)
    if refused is None:
        return fused(operator, args, kwargs)
    explanation = Explanation(operator.name, operator.symbol, *refused)
    if SETTINGS.mode == "on":
        remedy = explanation.remedy or "take fused_ops='auto', which then computes it with stock operators"
        raise ValueError(f"fused_ops='on': {operator.name} cannot be fused, because {explanation.reason}: {remedy}")
    _warn_once(explanation)
    return operator.reference(*args, **kwargs)


def decline(operator: Operator[Any, Any], reason: str) -> None:
    """Let `recorded` say that an operator is left out on purpose, under every setting."""
    if SETTINGS.recorder is not None:
        SETTINGS.recorder.append(Explanation(operator.name, operator.symbol, reason))


def fused(operator: Operator[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the fused operator, within an autograd function if the backward pass is to be the reference's."""
    if operator.gradients == "recomputed" and needs_gradients(args, kwargs):
        from pangu_modules.ascend.ops.recomputed import recomputed  # its import costs a reference nothing

        return recomputed(operator, args, kwargs)
    return call_library(operator, args, kwargs)


def call_library(operator: Operator[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the function of torch_npu, and return what the reference would."""
    call = operator.call(*args, **kwargs)
    outputs = getattr(library(), operator.symbol)(*call.args, **call.kwargs)
    return operator.result(outputs, *args, **kwargs)


def library() -> Any:
    """Return torch_npu, if it is loaded: a tensor on an NPU exists only then; or None."""
    return SETTINGS.library if SETTINGS.library is not None else sys.modules.get("torch_npu")


def explain_call(
    operator: Operator[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, as_if_on_npu: bool = False
) -> Explanation:
    """Return whether a call would be fused under ``auto``, and if not, why."""
    return Explanation(operator.name, operator.symbol, *(refusal(operator, args, kwargs, as_if_on_npu) or ()))


def refusal(
    operator: Operator[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any], as_if_on_npu: bool = False
) -> tuple[str, str | None] | None:
    """Return why a call is not fused and what to do about it, or None: it is. Every call on an NPU pays for this."""
    dtype, gradients, recording, wanted = None, False, torch.is_grad_enabled(), SETTINGS.device_type
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            if not as_if_on_npu and value.device.type != wanted:
                remedy = f"move model and data to {wanted}, or take fused_ops='auto'"
                return f"a tensor is on {value.device.type}", remedy
            if dtype is None:
                dtype = value.dtype
            if recording and value.requires_grad:
                gradients = True
    if not as_if_on_npu and not hasattr(library(), operator.symbol):
        return _missing(operator)
    if dtype not in operator.dtypes:
        return _other_type(operator, dtype)
    if gradients and operator.gradients == "none":
        return f"{operator.symbol} is for inference and this call needs gradients", "run it under torch.no_grad()"
    reason = operator.limits(*args, **kwargs)
    return None if reason is None else (reason, None)


def tensors_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors among arguments."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value


def needs_gradients(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether autograd would record this call."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors_of(args, kwargs))


def _missing(operator: Operator[Any, Any]) -> tuple[str, str]:
    found = library()
    if found is None:
        return "torch_npu is not loaded", "install torch_npu on a machine with CANN"
    version = getattr(found, "__version__", "of this version")
    return f"torch_npu {version} has no {operator.symbol}", "install a newer torch_npu, and its torch"


def _other_type(operator: Operator[Any, Any], dtype: torch.dtype | None) -> tuple[str, str]:
    names = [_name(known) for known in operator.dtypes]
    allowed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
    return f"it takes {allowed}, not {_name(dtype)}", f"cast to {names[-1]}, or take fused_ops='auto'"


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def _warn_once(explanation: Explanation) -> None:
    key = (explanation.operator, re.sub(r"\d+", "#", explanation.reason or ""))  # every length would be a new reason
    if key not in SETTINGS.warned:
        SETTINGS.warned.add(key)
        warnings.warn(f"not fused on the NPU: {explanation}", stacklevel=4)
