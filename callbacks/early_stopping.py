"""EarlyStopping: ends training when a metric of validation gets no better, or is no number any more."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import tensor

from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.common.errors import UsageError
from pangu_modules.training.callback import RecipeCallback


class EarlyStopping(RecipeCallback, LightningEarlyStopping):
    """Lightning's early stopping, by default on the metric by which the module's checkpoints are best.

    It looks after every validation. A run that was stopped and is resumed stays stopped.
    """

    class Config(BaseConfig):
        """What to watch, and for how long."""

        monitor: str | None = Field(None, description="Logged metric; null: the module's own, e.g. val/loss.")
        mode: Literal["min", "max"] | None = Field(
            None, description="Whether less or more is better; with a monitor of your own."
        )
        patience: PositiveInt = Field(3, description="Validations in a row without an improvement that end training.")
        min_delta: NonNegativeFloat = Field(0.0, description="Improvements up to this count as none.")
        stopping_threshold: float | None = Field(None, description="Training ends once the metric is better than this.")
        check_finite: bool = Field(True, description="End training when the metric is NaN or infinite.")

        @model_validator(mode="after")
        def _check_mode(self) -> Self:
            if (self.monitor is None) != (self.mode is None):
                raise ValueError("monitor and mode go together: give both, or neither for the module's own metric")
            return self

    config: Config

    def __init__(self, config: Config, *, name: str = "early_stopping") -> None:
        super().__init__(
            config,
            name=name,
            monitor=config.monitor or "val/loss",
            mode=config.mode or "min",
            patience=config.patience,
            min_delta=config.min_delta,
            stopping_threshold=config.stopping_threshold,
            check_finite=config.check_finite,
            check_on_train_epoch_end=False,
            strict=False,  # what is missing is said by `on_validation_end`, in one sentence
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the module's own metric, if none was given.

        Raises:
            ValueError: the module has none, or the run validates nothing.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if self.config.monitor is None:
            own = getattr(pl_module, "monitor", None)
            if own is None:
                raise ValueError(
                    f"callback {self.name!r}: {type(pl_module).__name__} names no metric of its own (a class attribute "
                    '`monitor = ("val/loss", "min")`); give monitor and mode'
                )
            self._watch(*own)
        if trainer.limit_val_batches == 0:
            raise ValueError(f"callback {self.name!r}: trainer.limit_val_batches=0 validates nothing to watch")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a resumed run that had been stopped."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the metric with the best so far.

        Raises:
            UsageError: it was not logged.
        """
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise UsageError(f"callbacks.{self.name}.monitor: {self.monitor!r} is not logged; logged are: {logged}")
        super().on_validation_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting; the patience is the configuration's, which a resume may change."""
        super().load_state_dict({**state_dict, "patience": self.config.patience})

    def _watch(self, monitor: str, mode: Literal["min", "max"]) -> None:
        if (monitor, mode) == (self.monitor, self.mode):
            return
        self.monitor, self.mode = monitor, mode
        self.min_delta = abs(self.min_delta) * (1 if mode == "max" else -1)
        self.best_score = tensor(-math.inf if mode == "max" else math.inf)
