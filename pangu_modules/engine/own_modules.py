"""LightningModules and datamodules that are none of ours: what runs without our base classes, and what is asked for.

A recipe needs of a module a nested `Config` (`Configurable`) and what Lightning needs of it. What `PanguModule` adds is
done without: a checkpoint that is best (`monitor`), FLOPs (`example_batch`, `compute_outputs`), exports, plans.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from pangu_modules.common.errors import UsageError
from pangu_modules.engine.stages import BaseStage
from pangu_modules.training.module import PanguModule

StageT = TypeVar("StageT", bound=BaseStage)


def build_own(stage: BaseStage, arguments: Mapping[str, Any]) -> Any:
    """Build the module of a stage; one that is no `PanguModule` gets the arguments it takes, and its checkpoints data.

    Its configuration becomes a hyper-parameter, as plain data, so that checkpoints describe the module.

    Args:
        stage: holds the module's configuration.
        arguments: what the data tell the module.

    Raises:
        UsageError: its hyper-parameters hold what a checkpoint can only keep as code.
    """
    owner: Any = stage.module.owner
    if issubclass(owner, PanguModule):
        return stage.module.build(**arguments)
    taken = {name: value for name, value in arguments.items() if _takes(owner, name)}
    module = stage.module.build(**taken)
    module.save_hyperparameters({"config": stage.module.plain(), **taken}, logger=False)
    for name, value in module.hparams.items():
        if not _storable(value):
            raise UsageError(
                f"module: {owner.__name__}.save_hyperparameters() keeps {name!r}, a {type(value).__name__}, which "
                "checkpoints could only hold as code: leave it out, ignore=[...], or keep plain data"
            )
    return module


def rebuild_own(stage: BaseStage, stored: Mapping[str, Any]) -> Any:
    """Build a module that is no `PanguModule` from a checkpoint's hyper-parameters."""
    owner: Any = stage.module.owner
    config = type(stage.module).model_validate(stored["config"])
    runtime = {name: value for name, value in stored.items() if name != "config" and _takes(owner, name)}
    return config.build(**runtime)


def counted(module: LightningModule) -> nn.Module:
    """Return what the module's parameters are counted of: its model, or itself where it is none of ours."""
    return module.model if isinstance(module, PanguModule) else module


def monitor_of(module: LightningModule) -> tuple[str, str] | None:
    """Return the metric and direction by which checkpoints are best, or None where the module names none."""
    monitor: tuple[str, str] | None = getattr(module, "monitor", None)
    if monitor is None:
        rank_zero_warn(
            f'{type(module).__name__} has no class attribute `monitor`, e.g. ("val/loss", "min"): no best.ckpt is kept'
        )
    return monitor


def has_test(module: LightningModule, data: LightningDataModule) -> bool:
    """Whether there is something to test; called after ``data.setup("test")``."""
    if hasattr(data, "test_dataset"):
        return data.test_dataset is not None
    return is_overridden("test_dataloader", data) and is_overridden("test_step", module)


def started_from(stage: StageT, checkpoint: str | Path) -> StageT:
    """Return the stage with a checkpoint to start from.

    Raises:
        UsageError: its module knows no such thing.
    """
    if "init_checkpoint" not in type(stage.module).model_fields:
        name = getattr(stage.module.owner, "__name__", "the module")
        raise UsageError(f"start_from: {name} starts from no checkpoint: derive it from pangu_modules.PanguModule")
    return stage.derive(module={"init_checkpoint": str(checkpoint)})


def check_predicts(module: LightningModule) -> None:
    """Refuse a module that predicts nothing.

    Raises:
        UsageError: it has neither ``predict_step`` nor ``forward``.
    """
    if not (
        is_overridden("predict_step", module, LightningModule) or is_overridden("forward", module, LightningModule)
    ):
        raise UsageError(
            f"predict: {type(module).__name__} has no predict_step(batch, batch_idx) and no forward(batch)"
        )


def missing_of_ours(error: AttributeError, module: Any) -> str | None:
    """Return what a callback of ours misses in a module that is no `PanguModule`, or None for any other error."""
    name, kind = error.name or "", type(module).__name__
    if isinstance(module, PanguModule):
        return None
    of_module = hasattr(PanguModule, name) or name in ("config", "model", "objectives", "runtime")
    if error.obj is module and of_module:
        return f"{kind} has no {name!r}: derive it from pangu_modules.PanguModule, which has"
    if error.obj is getattr(module, "config", module) and name in PanguModule.Config.model_fields:
        return f"{kind}.Config has no {name!r}: derive {kind} from pangu_modules.PanguModule, whose Config has"
    return None


def _takes(owner: Any, name: str) -> bool:
    parameters = inspect.signature(owner.__init__).parameters
    return name in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _storable(value: Any) -> bool:
    """Whether ``torch.load(weights_only=True)`` reads a value back."""
    if isinstance(value, Mapping):
        return type(value) is dict and all(_storable(item) for item in value.values())
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple) and all(_storable(item) for item in value)
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, torch.Tensor)
