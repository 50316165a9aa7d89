"""WeightAverage: the exponential moving average of the weights, evaluated and kept instead of the last weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.training.callback import RecipeCallback


class WeightAverage(RecipeCallback, WeightAveraging):
    """Lightning's weight averaging with an exponential moving average.

    Validation sees the averaged weights, a checkpoint has them as ``state_dict`` (the weights in training go to
    ``current_model_state``), and at the end of training the module takes them over. Until `update_starting_at_step`
    the average is a copy of the weights in training. Integer buffers are copied, never averaged.
    """

    class Config(BaseConfig):
        """When and how strongly to average."""

        decay: float = Field(0.999, gt=0, lt=1, description="Share of the old average kept at an update.")
        update_every_n_steps: PositiveInt = Field(1, description="Optimizer steps between two updates.")
        update_starting_at_step: NonNegativeInt = Field(
            0, description="Optimizer step (0-based) that averaging starts at."
        )

    config: Config
    needs = frozenset({"final shapes"})
    provides = frozenset({"averaged weights"})

    def __init__(self, config: Config, *, name: str = "ema") -> None:
        super().__init__(config, name=name, multi_avg_fn=_moving_average(config.decay, config.update_starting_at_step))
        self._shapes: list[torch.Size] = []

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether the average changes after this optimizer step."""
        if step_idx is None:
            return False
        after_start = step_idx - self.config.update_starting_at_step
        return after_start < 0 or after_start % self.config.update_every_n_steps == 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the module to be averaged.

        Raises:
            ValueError: the strategy shards the weights, or there is another averaging callback.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if any(getattr(other, "save_weights_only", False) for other in callbacks):
            # Lightning asks no callback when it saves weights only.
            rank_zero_warn(
                f"callback {self.name!r}: a ModelCheckpoint with save_weights_only=True stores the weights in training "
                "instead of the averaged ones that were validated; set save_weights_only=False"
            )
        super().setup(trainer, pl_module, stage)
        self._shapes = _shapes(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the module is still the one that was copied.

        Raises:
            ValueError: a callback after this one changed the module's structure.
        """
        if _shapes(pl_module) != self._shapes:
            raise ValueError(
                f"callback {self.name!r}: the model's structure changed after it was copied for averaging; list the "
                "callback after those that change the structure"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the averaged weights over also when a finished run was resumed, whose training Lightning skips."""
        self.on_train_end(trainer, pl_module)


def _moving_average(decay: float, start: int) -> Any:
    """Return the update of all averaged tensors of one dtype; the first `start` updates are copies."""
    average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor) -> None:
        # Averaged in floating point and cut off, an index buffer would change its values.
        if (start and num_averaged <= start) or not averaged[0].is_floating_point():
            for old, new in zip(averaged, current, strict=True):
                old.copy_(new)
        else:
            average(averaged, current, num_averaged)

    return update


def _shapes(module: LightningModule) -> list[torch.Size]:
    return [tensor.shape for tensor in (*module.parameters(), *module.buffers())]
