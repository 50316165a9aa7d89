"""The weighting model in training: its optimizer, its data, and its updates one after another."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.optim import Optimizer

from callbacks.weighting.batches import DrawnBatches, data_source, target_batches, training_batches
from callbacks.weighting.config import ReweightingConfig
from pangu_modules.llm.weighting.features import FeatureReader
from pangu_modules.llm.weighting.hypergradient import Lookahead
from pangu_modules.llm.weighting.model import DataWeightingModel
from pangu_modules.llm.weighting.preconditioning import next_step, schedule_factor
from pangu_modules.llm.weighting.protocol import LossesOf
from pangu_modules.llm.weighting.update import UpdateResult, UpdateSettings, update_weighting_model
from pangu_modules.training.processes import Processes

MAX_SKIPPED = 10


class Learner:
    """Updates a weighting model for the module that a trainer trains; built when training starts.

    Args:
        model: the weighting model, on the trainer's device.
        config: the callback's configuration.
        name: the callback's name, for messages.
        trainer: the trainer, with its optimizers.
        module: the module it trains.
        reader: for the encoders 'lm' and 'losses'.

    Raises:
        UsageError: the target or the training data cannot be used.
    """

    def __init__(
        self,
        model: DataWeightingModel,
        config: ReweightingConfig,
        name: str,
        trainer: Trainer,
        module: LightningModule,
        reader: FeatureReader | None,
    ) -> None:
        self.model, self.config, self.name, self.trainer = model, config, name, trainer
        self.reader = reader
        self.updates = 0  # of the whole run; update n uses batches n
        self.skipped = 0  # updates whose hypergradient was not finite
        self.skipped_in_row = 0
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=config.method.dwm_lr, weight_decay=0.0)
        self.processes = Processes.current()
        share = {"rank": self.processes.rank, "world_size": self.processes.world_size}
        source = data_source(trainer, module)
        self.target = target_batches(source, config.target, config.val_batch_size, config.seed, **share)
        self.training: DrawnBatches | None = None
        if config.mode == "staged" and config.lm_in_phase_a == "virtual":
            self.training = training_batches(source, config.seed, **share)
        self.losses_of = LossesOf(module)
        self.parameters = trained_parameters(trainer, self.losses_of)
        self._said_fallback = False

    def update(self, batch: Any = None) -> UpdateResult:
        """Take update number `updates` on a training batch, by default one drawn for it.

        Raises:
            RuntimeError: ten hypergradients in a row were not finite.
        """
        method, strategy = self.config.method, self.trainer.strategy
        if self.config.follow_lr:
            self._follow(self.trainer.optimizers[0])
        if batch is None:
            assert self.training is not None
            batch = strategy.batch_to_device(self.training[self.updates])
        step = next_step(self.trainer.optimizers[0], list(self.parameters.values()), method.precondition)
        if method.precondition == "adam" and not step.uses_moments and not self._said_fallback:
            self._said_fallback = True
            rank_zero_info(f"{self.name}: the optimizer has no second moments (yet), so updates look ahead by SGD")
        target = strategy.batch_to_device(self.target[self.updates])
        ahead = Lookahead(self.losses_of, self.parameters, batch, target, step.lr, step.precondition, self.processes)
        settings = UpdateSettings(method.engine, method.fd_scale, method.normalize_h, method.sync_weights)
        result = update_weighting_model(self.model, self.optimizer, ahead, settings, self.reader)
        self.updates += 1
        self._count(result)
        return result

    def _follow(self, trained: Optimizer) -> None:
        """Scale the learning rate as the trained model's is.

        Equation (1) has that rate as a factor, which Adam's steps, equally large however small the gradient, lose.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.method.dwm_lr * schedule_factor(trained)

    def _count(self, result: UpdateResult) -> None:
        self.skipped += result.skipped
        self.skipped_in_row = self.skipped_in_row + 1 if result.skipped else 0
        if self.skipped_in_row == MAX_SKIPPED:
            raise RuntimeError(
                f"callback {self.name!r}: {MAX_SKIPPED} hypergradients in a row were not finite: the trained model "
                "diverges; lower its learning rate"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimizer and counters."""
        counters = {name: getattr(self, name) for name in ("updates", "skipped", "skipped_in_row")}
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "counters": counters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, value in state["counters"].items():
            setattr(self, name, value)


def trained_parameters(trainer: Trainer, losses_of: LossesOf) -> dict[str, nn.Parameter]:
    """Return the parameters that the trainer's first optimizer trains, by their names in `losses_of`."""
    trained = {id(value) for group in trainer.optimizers[0].param_groups for value in group["params"]}
    return {name: value for name, value in losses_of.named_parameters() if value.requires_grad and id(value) in trained}
