"""RunClock: seconds and epochs of training over all resumes, and the end at ``trainer.max_time``."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer


class RunClock(Timer):
    """Lightning's Timer, which also counts epochs.

    The Trainer's own count is lost where a run is resumed that had ended by ``max_steps``. It makes a Timer of its own
    for ``max_time``, unless it is given one: hence the limit is this one's.

    Args:
        max_time: as ``Trainer(max_time)`` takes it: ``DD:HH:MM:SS``, a timedelta, or its fields; None for no limit.

    Raises:
        MisconfigurationException: `max_time` has another form.
    """

    def __init__(self, max_time: Any = None) -> None:
        super().__init__(max_time, verbose=False)
        self.max_time = max_time
        self.epochs = 0

    @property
    def state_key(self) -> str:
        """The name under which checkpoints already hold the time."""
        return "Timer"

    @property
    def expired(self) -> bool:
        """Whether training has taken `max_time`."""
        left = self.time_remaining()
        return left is not None and left <= 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the epoch that begins."""
        self.epochs = trainer.current_epoch + 1

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds and epochs so far."""
        return {**super().state_dict(), "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from stored seconds and epochs."""
        super().load_state_dict(state_dict)
        self.epochs = state_dict.get("epochs", 0)
