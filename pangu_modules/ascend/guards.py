"""Checks that a run is on the NPU, and not unseen on the CPU, in float32, or over another backend."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed as dist

from pangu_modules.ascend import availability
from pangu_modules.ascend.availability import npu
from pangu_modules.ascend.precision import check_plugin


def require_npu(asked: str) -> None:
    """Raise unless there is an NPU.

    Args:
        asked: by which words the user asked for one.

    Raises:
        MisconfigurationException: there is none; the message says why and what mends it.
    """
    problem = availability.problem()
    if problem is not None:
        raise MisconfigurationException(f"{asked}: {problem}")


def check_device(device: torch.device) -> None:
    """Raise unless a strategy has chosen an NPU; Lightning's choice without a strategy's name is the CPU.

    Raises:
        MisconfigurationException: it has not.
    """
    if device.type != "npu":
        raise MisconfigurationException(
            f'accelerator="npu": the strategy would train on {device}, because Lightning knows no strategy of its own '
            'for NPUs: give strategy="single_npu" for one device, "ddp_npu" for several'
        )


def check_process() -> None:
    """Raise in a process that was forked from one that has used an NPU: it would hang.

    Raises:
        MisconfigurationException: this is one.
    """
    if npu()._is_in_bad_fork():  # of the functions that torch asks of every device it does not know itself
        raise MisconfigurationException(
            'this process was forked from one that has used an NPU, and would hang: give strategy="ddp_npu" and run a '
            'script (or torchrun); in a notebook take one device with strategy="single_npu"'
        )


def check_run(strategy: Any) -> None:
    """Check a Trainer's strategy once its module is known and its processes are connected.

    Raises:
        MisconfigurationException: its device, precision, parameters or backend are not for NPUs.
    """
    check_device(strategy.root_device)
    check_plugin(strategy.precision_plugin)
    check_strategy(strategy)
    check_parameters(strategy.lightning_module)
    check_backend()


def check_strategy(strategy: Any) -> None:
    """Refuse Lightning's own DDP: it opens CUDA streams, and may start its processes by fork."""
    if isinstance(strategy, DDPStrategy) and not getattr(strategy, "for_npu", False):
        raise MisconfigurationException(
            f'{type(strategy).__name__} is for CUDA: give strategy="ddp_npu", or NPUDDPStrategy(...) with its options'
        )


def check_parameters(module: torch.nn.Module | None) -> None:
    """Refuse parameters of double precision.

    Raises:
        MisconfigurationException: there are some; the message names the first.
    """
    double = [] if module is None else [n for n, p in module.named_parameters() if p.dtype in _DOUBLE]
    if double:
        raise MisconfigurationException(
            f"parameters of double precision ({len(double)}, the first is {double[0]}), which NPUs do not compute: "
            "call .float() on the model"
        )


_DOUBLE = (torch.float64, torch.complex128)


def check_backend() -> None:
    """Raise if processes are connected by gloo alone: their gradients would travel through the CPU, unseen."""
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        raise MisconfigurationException(
            'the processes are connected by gloo: give the strategy process_group_backend="hccl", or start none before'
        )
