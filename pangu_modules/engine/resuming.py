"""What a resumed stage takes from its checkpoint, what the command line may change, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from pydantic import ValidationError
from torch.optim.lr_scheduler import LambdaLR

from pangu_modules.common.errors import UsageError, readable
from pangu_modules.engine.checkpoint_io import read_checkpoint
from pangu_modules.engine.folder import RunFolder
from pangu_modules.engine.stages import Stage

OF_THE_RECIPE = ("init_checkpoint", "structure")  # a checkpoint's own are the results of training


@dataclass(frozen=True)
class Given:
    """The options that the user has written, of one stage.

    Attributes:
        names: dotted names as on the command line, e.g. ``base.module.optimizer.lr``; ``base.module`` stands for all
            of its fields.
        prefix: the stage's, e.g. ``base.``.
    """

    names: Collection[str]
    prefix: str = ""

    def option(self, field: str) -> str:
        """Return the option of a field of the module."""
        return f"{self.prefix}module.{field}"

    def has(self, field: str) -> bool:
        """Whether the user has written a field of the module, or what it lies in."""
        option = self.option(field)
        return any(option == name or option.startswith(f"{name}.") for name in self.names)


def changeable_fields(stage: Stage) -> tuple[str, ...]:
    """Return the module's fields that a resume may change: neither shapes, weights nor loss depend on them."""
    owner: Any = stage.module.owner
    return ("optimizer", *getattr(owner, "free_fields", ()))


def resumed_stage(stage: Stage, ckpt_path: Path, given: Given) -> Stage:
    """Return the stage as it is resumed: the checkpoint's module, with what the user has asked for and may change.

    The optimizer's fields are the checkpoint's unless written; the module's ``free_fields`` are the recipe's; where the
    checkpoint's other fields differ from the recipe's, a note on the terminal names them.

    Raises:
        UsageError: the user has written a field that cannot change, or the checkpoint is of another module.
    """
    before, is_configuration = _module_before(ckpt_path)
    check_given(stage, ckpt_path, given)
    ours, free = stage.module.plain(), getattr(stage.module.owner, "free_fields", ())
    changes = {
        field: value for field, value in flat(ours).items() if field.startswith("optimizer.") and given.has(field)
    }
    optimizer = {
        **before.get("optimizer", {}),
        **{field.removeprefix("optimizer."): changes[field] for field in changes},
    }
    fields = {**before, **{name: ours[name] for name in (*free, *OF_THE_RECIPE) if name in ours}}
    if "optimizer" in ours:
        fields["optimizer"] = optimizer
    try:
        module = type(stage.module).model_validate(fields)
    except ValidationError as error:
        raise other_module(ckpt_path, stage, readable(error).splitlines()[0]) from error
    if is_configuration:
        _note_differences(flat(module.plain()), flat(ours), ckpt_path)
    return stage.derive(module=module)


def check_given(stage: Stage, ckpt_path: Path, given: Given) -> None:
    """Refuse fields of the module that the user has written, that differ from the checkpoint's, and cannot change.

    Raises:
        UsageError: there are such; it names them with both values.
    """
    before, is_configuration = _module_before(ckpt_path)
    changeable, theirs = changeable_fields(stage), flat(before)
    wrong = []
    for field, value in flat(stage.module.plain()).items():
        fixed = field.partition(".")[0] not in (*changeable, *OF_THE_RECIPE)
        # A checkpoint alone no longer knows where its first weights came from: such fields are empty in it.
        known = field in theirs and (is_configuration or theirs[field] not in (None, False))
        if fixed and known and given.has(field) and value != theirs[field]:
            wrong.append(f"--{given.option(field)} {value!r} (trained with {theirs[field]!r})")
    if wrong:
        raise UsageError(
            f"{', '.join(wrong)}: a checkpoint keeps what its shapes, weights or loss depend on; leave it out, change "
            f"only {', '.join(changeable)}, or start anew from the weights with --{given.option('init_checkpoint')}"
        )


def other_module(ckpt_path: Path, stage: Stage, reason: str) -> UsageError:
    """Return the error of a checkpoint that the stage's module does not take."""
    name = stage.module.owner.__name__ if stage.module.owner else "module"
    return UsageError(
        f"--ckpt_path: {ckpt_path} was not written by this recipe's {name} ({reason}); give one of its own"
    )


def flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested plain data by dotted names."""
    leaves: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def _module_before(ckpt_path: Path) -> tuple[dict[str, Any], bool]:
    """Return the module's fields of the run that wrote a checkpoint, and whether they are those of its ``config.yaml``.

    The checkpoint's own differ where building has spent a field: it names no longer the place of its first weights.
    """
    stored: dict[str, Any] = read_checkpoint(ckpt_path)["hyper_parameters"]["config"]
    config = RunFolder.of_checkpoint(ckpt_path).path / "config.yaml"
    try:
        module = yaml.safe_load(config.read_text(encoding="utf-8"))["module"]
        fields, is_configuration = dict(module), True
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):  # none, or damaged: the checkpoint has it too
        fields, is_configuration = dict(stored), False
    # What the checkpoint was really trained with: a configuration may have been edited.
    return {**fields, **{name: stored[name] for name in ("optimizer",) if name in stored}}, is_configuration


def _note_differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], ckpt_path: Path) -> None:
    differing = [
        f"{name} {theirs[name]!r} (recipe: {ours[name]!r})"
        for name in theirs
        if name in ours and theirs[name] != ours[name]
    ]
    if differing:
        print(f"{ckpt_path}: goes on with the module it was trained with: {', '.join(differing)}", file=sys.stderr)


class ChangedOptimizer(Callback):
    """Gives a resumed optimizer the values of its configuration: Lightning restores those it was stored with."""

    def __init__(self) -> None:
        self._values: list[list[dict[str, Any]]] = []
        self._peaks: list[list[Any]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the values that the optimizers were built with, before the checkpoint's replace them.

        Raises:
            UsageError: the learning rate at a step is not known from the schedule alone.
        """
        self._values = [
            [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]
        for config in trainer.lr_scheduler_configs:
            if not isinstance(config.scheduler, LambdaLR):
                raise UsageError(
                    f"--module.optimizer: the values of a resumed run can change with a LambdaLR schedule, not with "
                    f"{type(config.scheduler).__name__}: leave them out"
                )
            self._peaks.append(list(config.scheduler.base_lrs))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put them back, with the learning rate that the schedule has at this step."""
        for optimizer, values in zip(trainer.optimizers, self._values, strict=True):
            for group, value in zip(optimizer.param_groups, values, strict=True):
                group.update(value)
        for config, peaks in zip(trainer.lr_scheduler_configs, self._peaks, strict=True):
            scheduler: Any = config.scheduler
            scheduler.base_lrs = peaks
            groups = zip(scheduler.optimizer.param_groups, peaks, scheduler.lr_lambdas, strict=True)
            for group, peak, share in groups:
                group["lr"] = peak * share(scheduler.last_epoch)
