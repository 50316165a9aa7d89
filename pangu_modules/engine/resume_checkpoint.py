"""ResumeCheckpoint: writes the file that an interrupted run continues from, at the points where Lightning can.

Lightning 2.6 resumes bit for bit from the end of a training batch that made an optimizer step, from the end of a
validation, and from an epoch's end (but there not with ``max_steps``: it then reads one batch too many). Not from an
epoch's start, nor from the middle of a batch, of accumulated gradients or of a validation, where ``save_on_exception``
also saves. From a batch that a validation follows it goes on after that validation, which would never happen.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from pydantic import Field, PositiveInt

from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.engine.metrics import MetricsFile
from pangu_modules.training.callback import RecipeCallback


class ResumeCheckpoint(RecipeCallback, Checkpoint):
    """Keep one checkpoint up to date: every n steps, after validations and epochs, and on SIGTERM (one process only).

    The file is replaced by a rename, so that a kill leaves the old or the new one. Give the Trainer this callback
    after its other checkpoint callbacks: their state is saved with it.

    Args:
        config: how often.
        path: the checkpoint file.
        name: the callback's name in the recipe.
    """

    class Config(BaseConfig):
        """How often to save."""

        every_n_train_steps: PositiveInt = Field(500, description="Optimizer steps between two saves inside an epoch.")

    config: Config

    def __init__(self, config: Config, *, path: str | Path, name: str = "resume_checkpoint") -> None:
        super().__init__(config, name=name)
        self.path = Path(path)
        self._step = 0  # optimizer steps when the last batch ended
        self._stepped = False  # whether the last batch made one, i.e. no gradients are pending
        self._ends_inside = False  # whether training stops in an epoch's middle, e.g. because its time is over
        self._mark: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the rows of ``metrics.csv`` when this callback saved, and whether a resume logs some of them again."""
        return self._mark

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from the step that training starts at."""
        self._step = trainer.global_step
        self._ends_inside = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every n steps, after the last of ``max_steps``, and where training stops inside an epoch."""
        every = self.config.every_n_train_steps
        due = trainer.global_step // every > self._step // every
        self._stepped = trainer.global_step > self._step
        self._step = trainer.global_step
        if _validates_next(trainer, batch_idx):
            return  # saved when it ends
        self._ends_inside = _stops(trainer) and not trainer.is_last_batch
        if self._ends_inside or (due and not trainer.is_last_batch) or self._step == trainer.max_steps:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation of training, unless it came out of turn because training stops."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not self._ends_inside:
            goes_on = trainer.is_last_batch and trainer.global_step != trainer.max_steps
            self._save(trainer, logs_again=goes_on)  # the values of the epoch that ends

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at an epoch's end; what stopped in its middle was saved there."""
        if trainer.max_steps == -1 and trainer.is_last_batch:
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save when Lightning stops for SIGTERM, between two batches; several processes may stop at different ones.

        Not inside a validation: a resume would skip it, or measure on its second part. Not inside a test.
        """
        training = trainer.state.fn == TrainerFn.FITTING and not trainer.validating
        at_epoch_end = trainer.is_last_batch and trainer.max_steps != -1
        if isinstance(exception, SIGTERMException) and training and trainer.world_size == 1 and not at_epoch_end:
            self._save(trainer)

    def _save(self, trainer: Trainer, logs_again: bool = False) -> None:
        if not self._stepped or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        rows = next((logger.rows for logger in trainer.loggers if isinstance(logger, MetricsFile)), None)
        self._mark = {"step": trainer.global_step, "rows": rows, "logs_again": logs_again}
        new = self.path.with_name(f"{self.path.name}.new")
        trainer.save_checkpoint(new, weights_only=False)
        if trainer.is_global_zero:
            _replace(new, self.path)
        trainer.strategy.barrier("ResumeCheckpoint")


def _validates_next(trainer: Any, batch_idx: int) -> bool:
    """Whether Lightning's schedule has a validation after this batch; a schedule in seconds is not foreseen."""
    batches = trainer.num_val_batches  # empty until the first validation builds the loaders
    if not trainer.enable_validation or (batches and sum(batches) == 0):
        return False
    every = trainer.check_val_every_n_epoch
    if every is not None and (trainer.current_epoch + 1) % every:
        return False
    if trainer.val_check_batch is None:
        return False
    if trainer.val_check_batch == float("inf"):
        return bool(trainer.is_last_batch)
    iteration = trainer.fit_loop.total_batch_idx if every is None else batch_idx
    return bool((iteration + 1) % trainer.val_check_batch == 0)


def _stops(trainer: Any) -> bool:
    """Whether training ends after this batch because a callback has asked for it."""
    enough = trainer.current_epoch >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)
    return bool(trainer.should_stop and enough)


def _replace(new: Path, path: Path) -> None:
    """Rename `new` to `path`; strategies that shard write folders, whose predecessor has to step aside."""
    if not path.is_dir():
        os.replace(new, path)
        return
    old = path.with_name(f"{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(path, old)
    os.replace(new, path)
    shutil.rmtree(old)
