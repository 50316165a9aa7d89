"""The Trainer of a stage: the recipe's callbacks, those that every run has, the loggers, and the checkpoint files."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from pangu_modules.common.errors import UsageError
from pangu_modules.engine.accelerators import completed
from pangu_modules.engine.checkpoint_io import read_checkpoint, write_checkpoints_atomically
from pangu_modules.engine.clock import RunClock
from pangu_modules.engine.errors import usage_errors
from pangu_modules.engine.exact_resume import ExactResume
from pangu_modules.engine.folder import RunFolder
from pangu_modules.engine.hyperparameters import LogHyperparameters
from pangu_modules.engine.metrics import MetricsFile, Row, rows_before
from pangu_modules.engine.own_modules import monitor_of
from pangu_modules.engine.progress import RunProgressBar
from pangu_modules.engine.resume_checkpoint import ResumeCheckpoint
from pangu_modules.engine.resuming import ChangedOptimizer
from pangu_modules.engine.stages import Stage
from pangu_modules.engine.starting import StartMark
from pangu_modules.training.callback import RECIPE_FOLDER
from pangu_modules.training.module import PanguModule

SAVE_EVERY = 100  # optimizer steps between two saves of ``last.ckpt`` inside an epoch


@dataclass(frozen=True)
class StageRun:
    """One run of a stage, as far as it is known before the Trainer is built.

    Attributes:
        folder: where its files go.
        kept: rows of ``metrics.csv`` that a resumed run goes on from.
        trained_with: the module's configuration in the checkpoint that it resumes from.
        quiet: no progress bar.
        begin: called when the first batch comes.
    """

    folder: RunFolder
    kept: Sequence[Row] = ()
    trained_with: Mapping[str, Any] | None = None
    quiet: bool = False
    begin: Callable[[], None] | None = None

    def resumed(self, ckpt_path: Path) -> StageRun:
        """Return the run as one that resumes from a checkpoint; it keeps none of its tensors.

        Raises:
            UsageError: the file is no checkpoint of training.
        """
        checkpoint = read_checkpoint(ckpt_path)
        if "global_step" not in checkpoint:
            raise UsageError(
                f"--ckpt_path: {ckpt_path} holds weights and no state of training to resume from: give a run's "
                "last.ckpt, or start from these weights with module.init_checkpoint"
            )
        kept = rows_before(self.folder.metrics, checkpoint)
        return replace(self, kept=kept, trained_with=checkpoint["hyper_parameters"]["config"])


def build_clock(stage: Stage) -> RunClock:
    """Build the clock that ends training at ``trainer.max_time``."""
    with usage_errors("trainer.max_time"):
        return RunClock(stage.trainer.get("max_time"))


def build_trainer(stage: Stage, run: StageRun, module: PanguModule, clock: RunClock | None = None) -> Trainer:
    """Build the Trainer of a stage with the recipe's callbacks, those every run has, and the loggers."""
    arguments = {name: value for name, value in stage.trainer.items() if name != "max_time"}  # the clock's
    arguments.setdefault("log_every_n_steps", 10)  # Lightning's 50 is a whole epoch of the embedded data
    arguments = completed({name: instantiate(value) for name, value in arguments.items()})
    with usage_errors("loggers"):
        arguments["logger"] = build_loggers(stage, run)
    arguments["default_root_dir"] = arguments.get("default_root_dir") or str(run.folder.path)
    arguments.setdefault("enable_model_summary", False)  # `plan` and the result table tell the sizes
    if run.quiet:
        arguments["enable_progress_bar"] = False
    with usage_errors("callbacks"):
        callbacks = [config.build(name=name) for name, config in stage.active_callbacks.items()]
    # The recipe's come first: what they draw at random at the start is drawn before exact resume restores the states.
    standard = standard_callbacks(run, module, arguments)
    if any(isinstance(callback, ProgressBar) for callback in callbacks):  # Lightning takes one: the recipe's own
        standard = [callback for callback in standard if not isinstance(callback, ProgressBar)]
    hyperparameters = LogHyperparameters(stage.plain(), (getattr(module, "monitor", None) or [None])[0])
    callbacks += [clock or RunClock(), *standard, hyperparameters, StartMark(run.begin)]
    _silence_advice(run.quiet)
    try:
        trainer = Trainer(**arguments, callbacks=callbacks)
    except Exception as error:  # Lightning answers values that it does not expect with errors of many kinds
        raise UsageError(f"trainer: {error}") from error
    setattr(trainer, RECIPE_FOLDER, arguments["default_root_dir"])
    write_checkpoints_atomically(trainer)
    return trainer


def standard_callbacks(run: StageRun, module: PanguModule, arguments: Mapping[str, Any]) -> list[Callback]:
    """Return the callbacks every run has: progress, learning rate, checkpoints and exact resume, in this order.

    ``last.ckpt`` is written after ``best.ckpt``, so that it knows of it.
    """
    callbacks: list[Callback] = []
    if arguments.get("enable_progress_bar") is not False:
        callbacks.append(RunProgressBar())
    if run.trained_with is not None and _optimizer_changed(run.trained_with, module):
        callbacks.append(ChangedOptimizer())  # before the learning rates are logged
    if arguments["logger"]:
        callbacks.append(LearningRateMonitor("step"))
    if arguments.get("enable_checkpointing") is not False and not arguments.get("fast_dev_run"):
        monitor = None if arguments.get("limit_val_batches") == 0 else monitor_of(module)
        if monitor is not None:  # without validation nothing says which is best
            callbacks.append(best_checkpoint(run.folder, *monitor))
        every = ResumeCheckpoint.Config(every_n_train_steps=SAVE_EVERY)
        callbacks.append(ResumeCheckpoint(every, path=run.folder.last))
    return [*callbacks, ExactResume(ExactResume.Config(), name="exact_resume")]


def _optimizer_changed(trained_with: Mapping[str, Any], module: PanguModule) -> bool:
    stored = trained_with.get("optimizer")
    return isinstance(module, PanguModule) and stored is not None and stored != module.config.plain()["optimizer"]


def best_checkpoint(folder: RunFolder, metric: str, mode: str) -> ModelCheckpoint:
    """Return the callback that keeps the checkpoint which is best by a metric; mode is "min" or "max".

    It holds all states: a checkpoint of weights alone would miss what averaging callbacks put into it.
    """
    return ModelCheckpoint(
        dirpath=folder.checkpoints,
        filename="best",
        monitor=metric,
        mode=mode,
        save_top_k=1,
        enable_version_counter=False,
        # At the validation's end, as `last.ckpt`: at the epoch's it would come after a `last.ckpt` that a kill leaves.
        save_on_train_epoch_end=False,
    )


def build_loggers(stage: Stage, run: StageRun) -> Any:
    """Return the loggers asked for, all of them writing below the stage's folder."""
    asked = stage.trainer.get("logger")
    if asked is False:
        return False
    build = {
        "csv": lambda: MetricsFile(run.folder.path, run.kept),
        "tensorboard": lambda: TensorBoardLogger(run.folder.path, name="tensorboard", version=""),
        "wandb": lambda: WandbLogger(save_dir=run.folder.path, project="pangu-recipes"),
    }
    extra = [] if asked in (None, True) else [instantiate(asked)]
    return [*(build[name]() for name in stage.loggers), *extra]


def instantiate(value: Any) -> Any:
    """Return ``{"class_path": ..., "init_args": {...}}`` as the object it describes, anything else unchanged."""
    if not (isinstance(value, Mapping) and "class_path" in value):
        return value
    module_name, _, class_name = str(value["class_path"]).rpartition(".")
    with usage_errors("trainer"):
        return getattr(importlib.import_module(module_name), class_name)(**value.get("init_args", {}))


def _silence_advice(quiet: bool) -> None:
    """Silence Lightning's advice that does not apply here: few workers are right for small data in memory."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*treespec.*is deprecated.*")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR if quiet else logging.WARNING)
