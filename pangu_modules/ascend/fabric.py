"""The strategies for Lightning's Fabric; FSDP2 there is a ModelParallelStrategy with `parallelize_fn`."""

from __future__ import annotations

from typing import Any

from lightning.fabric.plugins import Precision
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pangu_modules.ascend.groups import BACKEND, OneNPU, check_chosen, leave_at_exit, reduced, refuse_start_method
from pangu_modules.ascend.guards import check_parameters
from pangu_modules.ascend.precision import on_npu_fabric


class _OnNPU(Strategy):
    """What NPU strategies share: precision plugins for the NPU, and no parameters of double precision."""

    @property
    def precision(self) -> Precision:
        """The precision plugin."""
        return super().precision

    @precision.setter
    def precision(self, plugin: Precision | None) -> None:
        Strategy.precision.fset(self, on_npu_fabric(plugin))  # type: ignore[attr-defined]

    def module_to_device(self, module: nn.Module) -> None:
        """Move a module to the device."""
        check_parameters(module)
        super().module_to_device(module)  # type: ignore[safe-super]


class SingleNPUFabricStrategy(OneNPU, _OnNPU, SingleDeviceStrategy):
    """One NPU, "single_npu"; see `strategies.SingleNPUStrategy`."""


class _Parallel(_OnNPU):
    """Several processes over hccl."""

    def setup_environment(self) -> None:
        """Connect the processes."""
        check_chosen(self.root_device)
        super().setup_environment()
        leave_at_exit()

    def all_reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Return a tensor's sum, mean, maximum ... over all processes; see `groups.reduced`."""
        return reduced(super().all_reduce, tensor, group, reduce_op)  # type: ignore[safe-super]


class NPUDDPFabricStrategy(_Parallel, DDPStrategy):
    """Data-parallel over hccl, "ddp_npu"; see `strategies.NPUDDPStrategy`.

    Args:
        process_group_backend: another backend than hccl.
        **options: of Fabric's DDPStrategy, and of DistributedDataParallel.
    """

    _OF_LIGHTNING = ("accelerator", "parallel_devices", "cluster_environment", "checkpoint_io", "precision", "timeout")

    def __init__(self, *, process_group_backend: str = BACKEND, **options: Any) -> None:
        refuse_start_method(options)
        super().__init__(process_group_backend=process_group_backend, **options)
        self._of_ddp = {n: v for n, v in options.items() if n not in (*self._OF_LIGHTNING, "start_method")}

    def setup_module(self, module: nn.Module) -> DistributedDataParallel:
        """Wrap a module that is on its device; Lightning opens a CUDA stream for that."""
        return DistributedDataParallel(module, **self._of_ddp)


class NPUModelParallelFabricStrategy(_Parallel, ModelParallelStrategy):
    """FSDP2 and tensor parallelism over hccl.

    Args:
        parallelize_fn: as of Fabric's ModelParallelStrategy.
        process_group_backend: another backend than hccl.
        **options: of Fabric's ModelParallelStrategy.
    """

    def __init__(self, parallelize_fn: Any, *, process_group_backend: str = BACKEND, **options: Any) -> None:
        super().__init__(parallelize_fn, process_group_backend=process_group_backend, **options)
