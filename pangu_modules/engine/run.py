"""Running one stage: build its parts, train, test, and leave checkpoint, metrics and result in its folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pangu_modules.common.checkpoints import check_checkpoint
from pangu_modules.common.files import write_atomically
from pangu_modules.common.parameters import count_parameters
from pangu_modules.engine.checkpoint_io import read_checkpoint
from pangu_modules.engine.clock import RunClock
from pangu_modules.engine.errors import usage_errors
from pangu_modules.engine.folder import RunFolder, stored_result, to_yaml
from pangu_modules.engine.own_modules import build_own, counted, has_test, rebuild_own
from pangu_modules.engine.resuming import changeable_fields, other_module
from pangu_modules.engine.stages import BaseStage, Stage
from pangu_modules.engine.starting import StartMark, usage_errors_until_start
from pangu_modules.engine.trainer import StageRun, build_clock, build_trainer
from pangu_modules.training.module import PanguModule


@dataclass(frozen=True)
class StageResult:
    """What a finished stage measured.

    Attributes:
        metrics: test metrics by name, e.g. ``test/accuracy``.
        parameters: number of parameters of the model, shared ones once.
        seconds: wall time of training, over all resumes.
        epochs: epochs trained.
        checkpoint: the last checkpoint.
        seed: the stage's seed.
    """

    metrics: dict[str, float]
    parameters: int
    seconds: float
    epochs: int
    checkpoint: Path
    seed: int

    def plain(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {**asdict(self), "checkpoint": str(self.checkpoint)}

    @classmethod
    def read(cls, folder: RunFolder) -> StageResult | None:
        """Return the result stored in `folder`, or None while the stage is unfinished.

        Raises:
            UsageError: the file is damaged.
        """
        return stored_result(cls, folder)


def fit_stage(
    stage: Stage,
    path: Path,
    *,
    ckpt_path: Path | None = None,
    quiet: bool = False,
    begin: Callable[[], None] | None = None,
) -> StageResult:
    """Train and test a stage in the folder `path`.

    Args:
        stage: what to run.
        path: folder for its files.
        ckpt_path: checkpoint of the same stage to resume from: structure, weights, optimizer, data order and RNG; what
            `resuming.changeable_fields` names is the stage's.
        quiet: no progress bar.
        begin: called once when training begins, i.e. when nothing of the configuration is refused any more.

    Raises:
        UsageError: a value of the configuration cannot be built or set up (e.g. an unknown strategy, a missing file),
            or the checkpoint is damaged.
        OSError: the folder cannot be written, or is gone.
    """
    folder = RunFolder(path)
    folder.path.mkdir(parents=True, exist_ok=True)

    def write_config() -> None:
        write_atomically(folder.path / "config.yaml", to_yaml(stage.plain()))
        if begin is not None:
            begin()

    run = StageRun(folder, quiet=quiet, begin=write_config)
    # Before data and module are built: the split of the data and the first weights depend on the seed too.
    seed_everything(stage.seed, workers=True, verbose=False)
    data = build_data(stage)
    if ckpt_path is None:
        module = build_module(stage, data)
    else:
        module = load_module(stage, ckpt_path)
        run = run.resumed(ckpt_path)
    clock = build_clock(stage)  # its state is in the checkpoint: time and epochs are those of all resumes together
    trainer = build_trainer(stage, run, module, clock)
    with usage_errors_until_start(trainer, data):
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    if trainer.is_global_zero:
        _finish_training(trainer, run, clock)
    metrics = test_metrics(trainer, module, data)
    result = StageResult(
        metrics=metrics,
        parameters=count_parameters(counted(module)),
        seconds=clock.time_elapsed("train"),
        epochs=clock.epochs or trainer.current_epoch,  # checkpoints written before the clock counted have none
        checkpoint=folder.last,
        seed=stage.seed,
    )
    if trainer.is_global_zero:
        write_atomically(folder.result, json.dumps(result.plain(), indent=2) + "\n")
    if trainer.received_sigterm:  # Lightning finishes a test whose last batch has begun: what comes after must not
        raise SIGTERMException
    return result


def _finish_training(trainer: Trainer, run: StageRun, clock: RunClock) -> None:
    """See that the checkpoint and the configuration are there whatever training did, and say why it ended early."""
    if not run.folder.last.is_file():  # fast_dev_run and enable_checkpointing=False save nothing
        trainer.save_checkpoint(run.folder.last)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StartMark):
            callback.begin()  # a resumed run may have no batch left
    if clock.expired:
        print(
            f"trainer.max_time={clock.max_time} has ended training at step {trainer.global_step} after "
            f"{clock.time_elapsed('train'):.0f} s, all resumes together; a resume with a longer one goes on",
            file=sys.stderr,
        )


def build_data(stage: BaseStage) -> LightningDataModule:
    """Build the datamodule of a stage."""
    with usage_errors("data"):
        data: LightningDataModule = stage.data.build()
    return data


def build_module(stage: BaseStage, data: LightningDataModule | None) -> PanguModule:
    """Build the module of a stage from its configuration."""
    with usage_errors("data"):
        arguments = {} if data is None else module_arguments(data)
    start = getattr(stage.module, "init_checkpoint", None)
    if start is not None and Path(start).is_file():
        check_checkpoint(start)
    with usage_errors("module"):
        module: PanguModule = build_own(stage, arguments)
    return module


def load_module(stage: Stage, ckpt_path: Path) -> PanguModule:
    """Build the module that a checkpoint describes; its weights are still to be loaded.

    What shapes, weights or loss depend on comes from the checkpoint's own configuration; what
    `resuming.changeable_fields` names comes from the stage, as does what a checkpoint may not say (see
    `PanguModule.from_stored`).

    Raises:
        UsageError: the file is damaged, was not written by a recipe, or by one with another module.
    """
    owner: Any = stage.module.owner
    stored = read_checkpoint(ckpt_path)["hyper_parameters"]
    if not issubclass(owner, PanguModule):
        with usage_errors("module"):
            own: PanguModule = rebuild_own(stage, stored)
        return own
    # Built from the checkpoint, not from the recipe: callbacks may have changed the structure since the recipe's start.
    ours = stage.module.plain()
    said = {name: ours[name] for name in changeable_fields(stage) if name in ours}
    try:
        with usage_errors(f"--ckpt_path {ckpt_path}"):
            module: PanguModule = owner.from_stored(stored, **said)
    except TypeError as error:  # it was built with other things known at run time
        raise other_module(ckpt_path, stage, str(error)) from error
    return module


def module_arguments(data: LightningDataModule) -> dict[str, Any]:
    """Return what the datamodule tells the module at run time (e.g. the number of classes)."""
    tell = getattr(data, "module_arguments", None)
    arguments: dict[str, Any] = tell() if tell is not None else {}
    return arguments


def test_metrics(trainer: Trainer, module: PanguModule, data: LightningDataModule) -> dict[str, float]:
    """Evaluate on the test set, if the data has one."""
    data.setup("test")
    if not has_test(module, data):
        return {}
    of_loaders = trainer.test(module, datamodule=data, verbose=False)
    return {name: float(value) for metrics in of_loaders for name, value in metrics.items()}
