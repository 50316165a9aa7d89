"""The names that importing `pangu_modules.ascend` adds to Lightning's registries."""

from __future__ import annotations

from typing import Any

from lightning.fabric.accelerators import ACCELERATOR_REGISTRY
from lightning.fabric.strategies import STRATEGY_REGISTRY
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from pangu_modules.ascend import fabric, strategies
from pangu_modules.ascend.accelerator import NPUAccelerator

_UNUSED = "_find_unused_parameters_true"
TRAINER: dict[str, tuple[Any, dict[str, Any]]] = {
    "single_npu": (strategies.SingleNPUStrategy, {}),
    "ddp_npu": (strategies.NPUDDPStrategy, {}),
    f"ddp_npu{_UNUSED}": (strategies.NPUDDPStrategy, {"find_unused_parameters": True}),
    "model_parallel_npu": (strategies.NPUModelParallelStrategy, {}),
    "fsdp_npu": (strategies.NPUFSDPStrategy, {}),
}
FABRIC: dict[str, tuple[Any, dict[str, Any]]] = {
    "single_npu": (fabric.SingleNPUFabricStrategy, {}),
    "ddp_npu": (fabric.NPUDDPFabricStrategy, {}),
    f"ddp_npu{_UNUSED}": (fabric.NPUDDPFabricStrategy, {"find_unused_parameters": True}),
}


def register() -> None:
    """Register the accelerator and the strategies with Trainer and Fabric; again does nothing."""
    for accelerators in (AcceleratorRegistry, ACCELERATOR_REGISTRY):
        NPUAccelerator.register_accelerators(accelerators)
    for registry, entries in ((StrategyRegistry, TRAINER), (STRATEGY_REGISTRY, FABRIC)):
        for name, (strategy, options) in entries.items():
            registry.register(name, strategy, description=f"{strategy.__name__} on NPUs", override=True, **options)
