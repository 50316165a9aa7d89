"""The progress bar of a run: where the whole run stands, and how long it still takes, not the epoch's alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomTimeColumn
from rich.progress import ProgressColumn, Task
from rich.text import Text

UNKNOWN = "-:--:--"


class RunProgressBar(RichProgressBar):
    """Lightning's bar with ``Epoch 2/30`` or ``Step 40/200`` before it, and the time that the whole run still takes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(leave=False)
        self.pace = Pace(clock)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the epoch."""
        super().on_train_epoch_start(trainer, pl_module)
        self._describe(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step, and estimate what is left."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.pace.update(share_done(trainer, batch_idx + 1))
        self._describe(trainer)

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Return Lightning's columns with the run's time in place of the epoch's."""
        columns = super().configure_columns(trainer)
        return [RunTime(self) if isinstance(column, CustomTimeColumn) else column for column in columns]

    def _describe(self, trainer: Trainer) -> None:
        if self.is_enabled and self.progress is not None and self.train_progress_bar_id is not None:
            self.progress.update(self.train_progress_bar_id, description=position(trainer))


class Pace:
    """How long what is left of a run takes: as long for its share as what was done since the first batch's end."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first: tuple[float, float] | None = None  # time and share of the run at the first batch's end
        self.seconds_left: float | None = None

    def update(self, share: float | None) -> None:
        """Estimate where `share` of the run is done, 0 to 1; None where that is unknown."""
        self.seconds_left = None
        if share is None:
            return
        now = self._clock()
        if self._first is None:
            self._first = now, share
        began, before = self._first
        if share > before:
            self.seconds_left = max(0.0, 1 - share) * (now - began) / (share - before)


class RunTime(ProgressColumn):
    """Time since the bar began, and the time that is left: of the run while it trains, else of the bar."""

    max_refresh = 0.5

    def __init__(self, bar: RunProgressBar) -> None:
        self._bar = bar
        super().__init__()

    def render(self, task: Task) -> Text:
        """Return both, as ``0:00:12 • 0:03:05 left``."""
        training = task.id == self._bar.train_progress_bar_id
        left = self._bar.pace.seconds_left if training else task.time_remaining
        passed = task.finished_time if task.finished else task.elapsed
        return Text(f"{_duration(passed)} • {_duration(left)} left", style="dim")


def share_done(trainer: Trainer, batches: int) -> float | None:
    """Return how much of the run is done, 0 to 1, after `batches` of this epoch; None where no end is known."""
    shares = []
    if trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    if (trainer.max_epochs or -1) > 0 and math.isfinite(trainer.num_training_batches):
        shares.append((trainer.current_epoch + batches / trainer.num_training_batches) / float(trainer.max_epochs or 1))
    return max(shares, default=None)  # what is reached first ends the run


def position(trainer: Trainer) -> str:
    """Return where a run stands, counted from 1: by steps where ``max_steps`` ends it, else by epochs."""
    if trainer.max_steps > 0:
        return f"Step {trainer.global_step}/{trainer.max_steps}"
    epoch = trainer.current_epoch + 1
    return f"Epoch {epoch}/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else f"Epoch {epoch}"


def _duration(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else str(timedelta(seconds=round(seconds)))
