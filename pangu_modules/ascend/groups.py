"""What Trainer's and Fabric's strategies have in common: the processes, their backend, and what they refuse."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import distributed as dist

from pangu_modules.ascend.guards import require_npu

BACKEND = "hccl"
HOOKS = ("ddp_comm_hook", "ddp_comm_state", "ddp_comm_wrapper")


def refuse_hooks(options: Mapping[str, Any]) -> None:
    """Refuse communication hooks of DDP, which Lightning registers on CUDA only and drops elsewhere without a word."""
    given = [name for name in HOOKS if options.get(name) is not None]
    if given:
        raise ValueError(
            f"{given[0]}: communication hooks of DDP need nccl; leave it out, or average less often with "
            "accumulate_grad_batches"
        )


def refuse_start_method(options: Mapping[str, Any]) -> None:
    """Refuse every way of starting processes but as scripts: one that was forked hangs on an NPU."""
    method = options.get("start_method", "popen")
    if method != "popen":
        raise ValueError(
            f"start_method={method!r}: a process forked or spawned from another hangs on an NPU; leave it out and run "
            'a script (or torchrun); in a notebook take one device with strategy="single_npu"'
        )


def check_chosen(device: torch.device) -> None:
    """Raise unless Lightning has given an NPU strategy an NPU: its accelerator "auto" is the CPU there.

    Raises:
        MisconfigurationException: it has not.
    """
    if device.type != "npu":
        raise MisconfigurationException(
            f'the strategy is for NPUs, and would train on {device}: give accelerator="npu" too'
        )


def one_device(devices: Sequence[torch.device]) -> torch.device:
    """Return the only device of a strategy for one.

    Raises:
        MisconfigurationException: there are more, or it is none of ours.
    """
    check_chosen(devices[0])
    if len(devices) != 1:
        raise MisconfigurationException(
            f'strategy="single_npu" trains on one device, and devices= names {len(devices)}: give strategy="ddp_npu"'
        )
    return devices[0]


def reduced(reduce: Callable[..., Any], tensor: Any, group: Any, operation: Any) -> Any:
    """Return what a strategy's `reduce` returns, with means as sums that are divided here, in place as Lightning does.

    Lightning spares only gloo the operation AVG, which is not every backend's, and nobody's for whole numbers.
    """
    is_mean = operation is dist.ReduceOp.AVG or (isinstance(operation, str) and operation.lower() in ("mean", "avg"))
    if not is_mean or not isinstance(tensor, torch.Tensor) or not dist.is_initialized():
        return reduce(tensor, group, operation)
    total = reduce(tensor, group, "sum")
    return total.copy_(total / dist.get_world_size(group))


def leave_at_exit() -> None:
    """See that the process group ends before the interpreter does."""
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class OneNPU:
    """What the Trainer's and Fabric's strategies for one NPU share: the device is the one that they choose.

    It stands before Lightning's SingleDeviceStrategy in the order of bases.

    Args:
        device: used unless ``devices`` name one, as in ``devices=[3]``.
        **options: of Lightning's strategy.
    """

    def __init__(self, device: Any = "npu:0", **options: Any) -> None:
        require_npu('strategy="single_npu"')  # torch does not know the device's name without it
        self._chosen: torch.device | None = None
        super().__init__(device, **options)  # type: ignore[call-arg]

    @property
    def parallel_devices(self) -> list[torch.device] | None:
        """The device that Lightning has chosen, which sets it."""
        return None if self._chosen is None else [self._chosen]

    @parallel_devices.setter
    def parallel_devices(self, devices: Sequence[torch.device]) -> None:
        self._chosen = one_device(devices)

    @property
    def root_device(self) -> torch.device:
        """The device that is trained on."""
        chosen: torch.device = super().root_device if self._chosen is None else self._chosen  # type: ignore[misc]
        return chosen
