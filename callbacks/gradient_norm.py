"""GradientNorm: logs the norm of all gradients, before they are clipped."""

from __future__ import annotations

import math
from typing import Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.optim import Optimizer

from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.training.callback import RecipeCallback


class GradientNorm(RecipeCallback):
    """Log ``train/gradient_norm`` at optimizer steps: of accumulated and unscaled gradients, before clipping.

    Its curve is in the run's report; choose ``trainer.gradient_clip_val`` from it.
    """

    class Config(BaseConfig):
        """Which norm, and how often."""

        kind: Literal["l2", "max"] = Field("l2", description="Euclidean norm, or the largest magnitude of an element.")
        every_n_steps: PositiveInt = Field(1, description="Optimizer steps between two values.")

    config: Config

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the strategy.

        Raises:
            ValueError: each process has a part of each gradient, which cannot be put together.
        """
        super().setup(trainer, pl_module, stage)
        if isinstance(trainer.strategy, (DeepSpeedStrategy, FSDPStrategy)):
            raise ValueError(
                f"callback {self.name!r}: gradients sharded by {type(trainer.strategy).__name__} have no norm on one "
                "process; remove the callback, or train with strategy 'ddp' or 'model_parallel'"
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Log the norm over the optimizer's parameters."""
        if trainer.global_step % self.config.every_n_steps == 0:
            parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            norm = gradient_norm(gradients, self.config.kind)
            pl_module.log("train/gradient_norm", norm, on_step=True, on_epoch=False)


def gradient_norm(gradients: list[Tensor], kind: Literal["l2", "max"] = "l2") -> Tensor:
    """Return the norm of all elements of all gradients, a float32 scalar (float64 where they are); 0 without any."""
    if not gradients:
        return torch.zeros(())
    wide = [gradient if gradient.dtype == torch.float64 else gradient.float() for gradient in gradients]
    norm = torch.nn.utils.get_total_norm(wide, norm_type=math.inf if kind == "max" else 2.0)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
