"""ResumeCheckpoint: writes the file that an interrupted run continues from, at the points where Lightning can.

Lightning 2.6 resumes bit for bit from the end of a training batch that made an optimizer step, from the end of a
validation, and from an epoch's end (but there not with ``max_steps``: it then reads one batch too many). Not from an
epoch's start, nor from the middle of a batch or of accumulated gradients, where ``save_on_exception`` also saves.
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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from the step that training starts at."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every n steps and after the last of ``max_steps``."""
        every = self.config.every_n_train_steps
        due = trainer.global_step // every > self._step // every
        self._stepped = trainer.global_step > self._step
        self._step = trainer.global_step
        # From an epoch's last batch Lightning would continue with the next epoch and skip the validation between.
        if (due and not trainer.is_last_batch) or self._step == trainer.max_steps:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation of training."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at an epoch's end."""
        if trainer.max_steps == -1:
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save when Lightning stops for SIGTERM, between two batches; several processes may stop at different ones."""
        at_epoch_end = trainer.is_last_batch and trainer.max_steps != -1
        if isinstance(exception, SIGTERMException) and trainer.world_size == 1 and not at_epoch_end:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if not self._stepped or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        new = self.path.with_name(f"{self.path.name}.new")
        trainer.save_checkpoint(new, weights_only=False)
        if trainer.is_global_zero:
            _replace(new, self.path)
        trainer.strategy.barrier("ResumeCheckpoint")


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
