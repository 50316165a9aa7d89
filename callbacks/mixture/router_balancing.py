"""RouterBalancing: the objectives that balance a mixture's experts, and DeepSeek's bias instead of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from pydantic import Field
from torch import Tensor

from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.llm.moge.auxiliary_loss import (
    BalancingConfig,
    auxiliary_objective,
    padding_mask,
    selected_counts,
    z_objective,
)
from pangu_modules.llm.moge.block import MoGEBlock, moge_blocks, recorded_routings
from pangu_modules.training.callback import RecipeCallback
from pangu_modules.training.module import PanguModule
from pangu_modules.training.objectives import Batch


class RouterBalancing(RecipeCallback):
    """Adds the auxiliary loss (arXiv:2505.21411, section 2) and, if asked for, the router's z-loss as objectives.

    Their names are ``<callback>`` and ``<callback>_z``. Routers of kind "deepseek" are balanced without a loss, too:
    after each optimizer step their selection bias moves against the load (arXiv:2412.19437, section 2.1.2), by the
    model's ``bias_update_speed``; 0 there leaves the bias alone.
    """

    class Config(BaseConfig):
        """The objectives; there is no schedule."""

        renamed = {name: f"method.{name}" for name in ("coefficient", "scope", "z_coefficient")}

        method: BalancingConfig = Field(BalancingConfig(), description="Objectives that balance, and their weights.")

    config: Config

    def __init__(self, config: Config, *, name: str = "balance") -> None:
        super().__init__(config, name=name)
        self._counts: Tensor | None = None  # (L, N), of the micro-batches since the last optimizer step
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the objectives; only for training.

        Raises:
            TypeError: the module is not a `PanguModule`.
            ValueError: the model has no mixture of experts.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if not isinstance(pl_module, PanguModule):
            raise TypeError(f"callback {self.name!r} needs a PanguModule over a language model, e.g. CausalLM")
        if not any(moge_blocks(pl_module.model)):
            raise ValueError(
                f"callback {self.name!r}: the model has no mixture of experts to balance; train architecture "
                "'PanguProMoE', or upcycle a dense model by a plan in module.structure"
            )
        coefficient = self._coefficient(pl_module)
        if coefficient > 0:
            pl_module.objectives[self.name] = auxiliary_objective(coefficient, self.config.method.scope)
        if self.config.method.z_coefficient > 0:
            pl_module.objectives[f"{self.name}_z"] = z_objective(self.config.method.z_coefficient)

    def _coefficient(self, module: PanguModule) -> float:
        if self.config.method.coefficient is not None:
            return self.config.method.coefficient
        return float(getattr(module.model.config, "router_aux_loss_coef", 0.001))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the optimizer step training starts from."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """After an optimizer step, move the selection biases of deepseek routers by the load of all ranks."""
        blocks = biased_blocks(pl_module)
        if not blocks:
            return
        mask = padding_mask(batch)
        routings = recorded_routings(torch.nn.ModuleList(blocks))
        counts = torch.stack([selected_counts(routing, mask) for routing in routings])
        self._counts = counts if self._counts is None else self._counts + counts
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._counts)
        for block, load in zip(blocks, self._counts, strict=True):
            block.gate.update_bias(load)
        self._counts = None


def biased_blocks(module: LightningModule) -> list[MoGEBlock]:
    """Return the module's mixtures whose router is balanced by a bias."""
    blocks = [block for _, block in moge_blocks(module)]
    return [block for block in blocks if block.config.router == "deepseek" and block.config.bias_update_speed > 0]
