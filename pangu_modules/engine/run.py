"""Running one stage: build its parts, train, test, and leave checkpoint, metrics and result in its folder."""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar, Timer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from pangu_modules.common.errors import UsageError, usage_errors
from pangu_modules.common.files import write_atomically
from pangu_modules.common.parameters import count_parameters
from pangu_modules.engine.checkpoint_io import write_checkpoints_atomically
from pangu_modules.engine.exact_resume import ExactResume
from pangu_modules.engine.folder import RunFolder, merge_metrics, set_metrics_aside, to_yaml
from pangu_modules.engine.resume_checkpoint import ResumeCheckpoint
from pangu_modules.engine.spec import Stage
from pangu_modules.engine.starting import StartMark, usage_errors_until_start
from pangu_modules.training.callback import RECIPE_FOLDER
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
        """Return the result stored in `folder`, or None while the stage is unfinished."""
        plain = folder.read_result()
        return None if plain is None else cls(**{**plain, "checkpoint": Path(plain["checkpoint"])})


def fit_stage(stage: Stage, path: Path, *, ckpt_path: Path | None = None, quiet: bool = False) -> StageResult:
    """Train and test a stage in the folder `path`.

    Args:
        stage: what to run.
        path: folder for its files.
        ckpt_path: checkpoint of the same stage to resume from: structure, weights, optimizer, data order and RNG.
        quiet: no progress bar.

    Raises:
        UsageError: a value of the configuration cannot be built or set up (e.g. an unknown strategy, a missing file).
    """
    folder = RunFolder(path)
    folder.path.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.path / "config.yaml", to_yaml(stage.plain()))
    aside = set_metrics_aside(folder.metrics) if ckpt_path else None
    # Before data and module are built: the split of the data and the first weights depend on the seed too.
    seed_everything(stage.seed, workers=True, verbose=False)
    data = build_data(stage)
    module = build_module(stage, data) if ckpt_path is None else load_module(stage, ckpt_path)
    timer = Timer()  # its state is in the checkpoint: the time is that of all resumes together
    trainer = build_trainer(stage, folder, module, quiet=quiet, timer=timer)
    with usage_errors_until_start(trainer, data):
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    if trainer.is_global_zero and not folder.last.is_file():  # fast_dev_run and enable_checkpointing=False save nothing
        trainer.save_checkpoint(folder.last)
    metrics = test_metrics(trainer, module, data)
    if aside is not None and folder.metrics.is_file():
        merge_metrics(aside, folder.metrics, folder.metrics)
        aside.unlink()
    result = StageResult(
        metrics=metrics,
        parameters=count_parameters(module.model),
        seconds=timer.time_elapsed("train"),
        epochs=trainer.current_epoch,
        checkpoint=folder.last,
        seed=stage.seed,
    )
    write_atomically(folder.result, json.dumps(result.plain(), indent=2) + "\n")
    return result


def build_data(stage: Stage) -> LightningDataModule:
    """Build the datamodule of a stage."""
    with usage_errors("data"):
        data: LightningDataModule = stage.data.build()
    return data


def build_module(stage: Stage, data: LightningDataModule) -> PanguModule:
    """Build the module of a stage from its configuration."""
    with usage_errors("data"):
        arguments = module_arguments(data)
    with usage_errors("module"):
        module: PanguModule = stage.module.build(**arguments)
    return module


def load_module(stage: Stage, ckpt_path: Path) -> PanguModule:
    """Build the module that a checkpoint describes; its weights are still to be loaded.

    What shapes, weights or loss depend on comes from the checkpoint's own configuration, the module's ``free_fields``
    come from the stage.

    Raises:
        UsageError: the file was not written by a recipe, or by one with another module.
    """
    owner: Any = stage.module.owner
    stored = torch.load(ckpt_path, map_location="cpu", weights_only=True).get("hyper_parameters", {})
    if "config" not in stored:
        raise UsageError(f"--ckpt_path: {ckpt_path} holds no configuration: give a .ckpt file that fit has written")
    # Built from the checkpoint, not from the recipe: callbacks may have changed the structure since the recipe's start.
    ours = stage.module.plain()
    config = stored["config"] | {name: ours[name] for name in owner.free_fields}
    with usage_errors("module"):
        module: PanguModule = owner(**{**stored, "config": config})
    return module


def module_arguments(data: LightningDataModule) -> dict[str, Any]:
    """Return what the datamodule tells the module at run time (e.g. the number of classes)."""
    tell = getattr(data, "module_arguments", None)
    arguments: dict[str, Any] = tell() if tell is not None else {}
    return arguments


def build_trainer(
    stage: Stage, folder: RunFolder, module: PanguModule, *, quiet: bool = False, timer: Timer | None = None
) -> Trainer:
    """Build the Trainer of a stage with the recipe's callbacks, those every run has, and the loggers."""
    arguments = dict(stage.trainer)
    arguments.setdefault("log_every_n_steps", 10)  # Lightning's 50 is a whole epoch of the embedded data
    arguments = {name: instantiate(value) for name, value in arguments.items()}
    with usage_errors("loggers"):
        arguments["logger"] = build_loggers(stage, folder)
    arguments["default_root_dir"] = arguments.get("default_root_dir") or str(folder.path)
    arguments.setdefault("enable_model_summary", False)  # `plan` and the result table tell the sizes
    if quiet:
        arguments["enable_progress_bar"] = False
    with usage_errors("callbacks"):
        callbacks = [config.build(name=name) for name, config in stage.active_callbacks.items()]
    # The recipe's come first: what they draw at random at the start is drawn before exact resume restores the states.
    callbacks += [timer or Timer(), *standard_callbacks(folder, module, arguments), StartMark()]
    _silence_advice(quiet)
    with usage_errors("trainer"):
        trainer = Trainer(**arguments, callbacks=callbacks)
    setattr(trainer, RECIPE_FOLDER, arguments["default_root_dir"])
    write_checkpoints_atomically(trainer)
    return trainer


def standard_callbacks(folder: RunFolder, module: PanguModule, arguments: Mapping[str, Any]) -> list[Callback]:
    """Return the callbacks every run has: progress, learning rate, checkpoints and exact resume, in this order.

    ``last.ckpt`` is written after ``best.ckpt``, so that it knows of it.
    """
    callbacks: list[Callback] = []
    if arguments.get("enable_progress_bar") is not False:
        callbacks.append(RichProgressBar(leave=False))
    if arguments["logger"]:
        callbacks.append(LearningRateMonitor("step"))
    if arguments.get("enable_checkpointing") is not False and not arguments.get("fast_dev_run"):
        if arguments.get("limit_val_batches") != 0:  # without validation nothing says which is best
            callbacks.append(best_checkpoint(folder, module))
        callbacks.append(ResumeCheckpoint(ResumeCheckpoint.Config(every_n_train_steps=100), path=folder.last))
    return [*callbacks, ExactResume(ExactResume.Config(), name="exact_resume")]


def best_checkpoint(folder: RunFolder, module: PanguModule) -> ModelCheckpoint:
    """Return the callback that keeps the checkpoint which is best by the module's own metric.

    It holds all states: a checkpoint of weights alone would miss what averaging callbacks put into it.
    """
    metric, mode = module.monitor
    return ModelCheckpoint(
        dirpath=folder.checkpoints,
        filename="best",
        monitor=metric,
        mode=mode,
        save_top_k=1,
        enable_version_counter=False,
    )


def build_loggers(stage: Stage, folder: RunFolder) -> Any:
    """Return the loggers asked for, all of them writing below the stage's folder."""
    asked = stage.trainer.get("logger")
    if asked is False:
        return False
    build = {
        "csv": lambda: CSVLogger(folder.path, name="", version=""),
        "tensorboard": lambda: TensorBoardLogger(folder.path, name="tensorboard", version=""),
        "wandb": lambda: WandbLogger(save_dir=folder.path, project="pangu-recipes"),
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


def test_metrics(trainer: Trainer, module: PanguModule, data: LightningDataModule) -> dict[str, float]:
    """Evaluate on the test set, if the data has one."""
    data.setup("test")
    if getattr(data, "test_dataset", None) is None:
        return {}
    (metrics,) = trainer.test(module, datamodule=data, verbose=False)
    return {name: float(value) for name, value in metrics.items()}


def _silence_advice(quiet: bool) -> None:
    """Silence Lightning's advice that does not apply here: few workers are right for small data in memory."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*treespec.*is deprecated.*")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR if quiet else logging.WARNING)
