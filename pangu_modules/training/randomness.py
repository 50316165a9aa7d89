"""Random numbers drawn beside training, so that the training's own stay what they would be without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from lightning.pytorch.utilities.seed import isolate_rng


@contextmanager
def unchanged_randomness(accelerator: bool = False) -> Iterator[None]:
    """Restore the global random states of Python, numpy and torch after the block.

    Args:
        accelerator: those of the accelerator's devices too, where the block draws there.
    """
    with isolate_rng(include_cuda=accelerator), _unchanged_beside_cuda() if accelerator else nullcontext():
        yield


def _unchanged_beside_cuda() -> AbstractContextManager[None]:
    """Restore the current device of an accelerator that Lightning does not know, such as an NPU."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None or device.type == "cuda":
        return nullcontext()
    return torch.random.fork_rng([torch.accelerator.current_device_index()], device_type=device.type)


@contextmanager
def isolated_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's random numbers on the CPU and on `device` within the block, and restore them after it."""
    on_cpu = device.type == "cpu"
    devices: list[int] = [] if on_cpu else [device.index or 0]
    with torch.random.fork_rng(devices, device_type="cuda" if on_cpu else device.type):
        torch.manual_seed(seed)
        yield
