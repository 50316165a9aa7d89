"""Lightning's strategies on NPUs: one device, data parallel, and sharded in the old and the new way."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)

from pangu_modules.ascend.groups import (
    BACKEND,
    OneNPU,
    check_chosen,
    leave_at_exit,
    reduced,
    refuse_hooks,
    refuse_start_method,
)
from pangu_modules.ascend.precision import on_npu


class _OnNPU(Strategy):
    """What NPU strategies share: the Trainer's precision plugin becomes one for the NPU."""

    for_npu = True

    @property
    def precision_plugin(self) -> Precision:
        """The precision plugin."""
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        Strategy.precision_plugin.fset(self, on_npu(plugin))  # type: ignore[attr-defined]


class SingleNPUStrategy(OneNPU, _OnNPU, SingleDeviceStrategy):
    """Training on one NPU, "single_npu"; its arguments are `groups.OneNPU`'s."""

    strategy_name = "single_npu"


class _Parallel(_OnNPU):
    """Several processes over hccl, which is left at the end: Lightning leaves nccl only."""

    def setup_environment(self) -> None:
        """Connect the processes."""
        check_chosen(self.root_device)
        super().setup_environment()
        leave_at_exit()

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Return a tensor's sum, mean, maximum ... over all processes; see `groups.reduced`."""
        return reduced(super().reduce, tensor, group, reduce_op)  # type: ignore[safe-super]


class NPUDDPStrategy(_Parallel, DDPStrategy):
    """Data-parallel training over hccl, one process per NPU, "ddp_npu".

    Args:
        process_group_backend: another backend than hccl.
        **options: of Lightning's DDPStrategy, e.g. ``find_unused_parameters``.

    Raises:
        ValueError: a communication hook, which needs nccl, or a start method by which an NPU hangs.
    """

    strategy_name = "ddp_npu"

    def __init__(self, *, process_group_backend: str = BACKEND, **options: Any) -> None:
        refuse_hooks(options)
        refuse_start_method(options)
        super().__init__(process_group_backend=process_group_backend, **options)

    def determine_ddp_device_ids(self) -> None:
        """Return None: the module is on its device already, and Lightning opens a CUDA stream for anything else."""
        return


class NPUModelParallelStrategy(_Parallel, ModelParallelStrategy):
    """FSDP2 and tensor parallelism over hccl, "model_parallel_npu"; the mesh is in ``module.device_mesh``.

    Args:
        process_group_backend: another backend than hccl.
        **options: of Lightning's ModelParallelStrategy.
    """

    strategy_name = "model_parallel_npu"

    def __init__(self, *, process_group_backend: str = BACKEND, **options: Any) -> None:
        super().__init__(process_group_backend=process_group_backend, **options)


class NPUFSDPStrategy(_Parallel, FSDPStrategy):
    """Fully sharded training in the old way (FSDP1) over hccl, "fsdp_npu"; new code takes NPUModelParallelStrategy.

    Args:
        process_group_backend: another backend than hccl.
        **options: of Lightning's FSDPStrategy; a ``device_mesh`` of two numbers is laid out over the NPUs.
    """

    strategy_name = "fsdp_npu"

    def __init__(self, *, process_group_backend: str = BACKEND, **options: Any) -> None:
        super().__init__(process_group_backend=process_group_backend, **options)

    @property
    def precision_plugin(self) -> Any:
        """The precision plugin, always one of FSDP's."""
        return FSDPStrategy.precision_plugin.fget(self)  # type: ignore[attr-defined]

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        FSDPStrategy.precision_plugin.fset(self, on_npu(plugin))  # type: ignore[attr-defined]

    def setup_environment(self) -> None:
        """Connect the processes; Lightning would lay a mesh of numbers out over CUDA devices."""
        shape = self.kwargs.pop("device_mesh", None) if isinstance(self.kwargs.get("device_mesh"), tuple) else None
        super().setup_environment()
        if shape is not None:
            self.kwargs["device_mesh"] = torch.distributed.init_device_mesh(self.root_device.type, shape)
