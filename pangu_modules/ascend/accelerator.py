"""NPUAccelerator: what Lightning asks of a kind of device, and the checks that a run is really on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_info
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import Accelerator

from pangu_modules.ascend import availability, guards
from pangu_modules.ascend import devices as devices_module
from pangu_modules.ascend.availability import npu
from pangu_modules.ascend.ops.dispatch import FusedOps, set_fused_ops
from pangu_modules.ascend.ops.fusing import fuse


class NPUAccelerator(Accelerator):
    """Ascend NPUs for Trainer and Fabric, ``accelerator="npu"``.

    By default a float32 product is one, as on the CPU: the vendor's is of lower precision in convolutions.

    Args:
        allow_hf32: let matrix products and convolutions of float32 numbers use the faster format of fewer bits.
        allow_internal_format: let weights take the device's private layouts.
        jit_compile: compile operators for every new shape instead of taking the binaries that come with CANN.
        fused_ops: let the model use the device's fused operators: ``auto`` where they can run, ``on`` raises where one
            cannot, ``off`` leaves the model as it is.

    Raises:
        MisconfigurationException: there is no NPU; the message says why and what mends it.
    """

    def __init__(
        self,
        *,
        allow_hf32: bool = False,
        allow_internal_format: bool = False,
        jit_compile: bool = False,
        fused_ops: FusedOps = "auto",
    ) -> None:
        guards.require_npu('accelerator="npu"')
        self.allow_hf32 = allow_hf32
        self.allow_internal_format = allow_internal_format
        self.jit_compile = jit_compile
        self.fused_ops: FusedOps = fused_ops

    def setup_device(self, device: torch.device) -> None:
        """Make a device the current one of this process, and set what kind of arithmetic it does.

        Raises:
            MisconfigurationException: the strategy has chosen another kind of device.
        """
        guards.check_device(device)
        guards.check_process()
        npu().set_device(device)
        npu().matmul.allow_hf32 = npu().conv.allow_hf32 = self.allow_hf32
        npu().config.allow_internal_format = self.allow_internal_format
        npu().set_compile_mode(jit_compile=self.jit_compile)

    def setup(self, trainer: Trainer) -> None:
        """Check that the run trains on NPUs in the precision asked for, and let its model use fused operators.

        Raises:
            MisconfigurationException: it would train elsewhere or otherwise.
        """
        guards.check_run(trainer.strategy)
        device = trainer.strategy.root_device
        rank_zero_info(f"NPU available: True ({npu().get_device_name(device)}), used: {trainer.num_devices}")
        npu().empty_cache()
        set_fused_ops(self.fused_ops)
        if self.fused_ops != "off":
            fuse(trainer.lightning_module)

    def teardown(self) -> None:
        """Return unused memory to the device."""
        npu().empty_cache()

    @staticmethod
    def parse_devices(devices: int | str | Sequence[int]) -> list[int]:
        """Return the indices that ``devices=`` means; see `devices.parse`."""
        return devices_module.parse(devices, NPUAccelerator.auto_device_count())

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        """Return the devices of these indices."""
        return [torch.device("npu", index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        """Return how many devices this process sees."""
        return int(npu().device_count()) if availability.is_available() else 0

    @staticmethod
    def is_available() -> bool:
        """Whether there is an NPU; never raises."""
        return availability.is_available()

    @staticmethod
    def name() -> str:
        """Return "npu"."""
        return "npu"

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        """Return the device's memory statistics, for DeviceStatsMonitor."""
        stats: dict[str, Any] = npu().memory_stats(device)
        return stats

    @classmethod
    def register_accelerators(cls, accelerator_registry: Any) -> None:
        """Register "npu" with one of Lightning's registries; again does nothing."""
        accelerator_registry.register(cls.name(), cls, description="Ascend NPUs", override=True)
