"""InfluenceSelection: keeps the data whose influence on the target a small model predicts to be largest (as MATES)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from pydantic import Field, PositiveInt
from torch import Tensor

from callbacks.weighting.batches import DrawnBatches, data_source, target_batches, training_batches
from callbacks.weighting.checks import check_run
from callbacks.weighting.learner import trained_parameters
from callbacks.weighting.recorded import RecordedWeighting
from pangu_modules.common.errors import UsageError
from pangu_modules.llm.weighting.baselines import weights as baselines
from pangu_modules.llm.weighting.baselines.influence import InfluenceConfig, InfluenceModel, measured_influences
from pangu_modules.llm.weighting.baselines.ngrams import sequences_of
from pangu_modules.llm.weighting.preconditioning import next_step
from pangu_modules.llm.weighting.protocol import LossesOf
from pangu_modules.training.module import batch_size
from pangu_modules.training.randomness import unchanged_randomness


class InfluenceSelection(RecordedWeighting):
    """At the start of each part of training but the first, measures influences, fits a model, and selects by it.

    The measure is DWM's own (fd, and the optimizer's moments), so that the two differ in what they do with it: here
    each sequence is judged alone, by its n-grams, and kept or not. The target is the validation data. Training steps
    are those of plain training; the measurements come on top, each about 2.7 of them per batch.
    """

    class Config(RecordedWeighting.Config):
        """How much is measured, and the method."""

        renamed = {
            **RecordedWeighting.Config.renamed,
            **{name: f"method.{name}" for name in ("fd_scale", "keep", "alpha")},
        }

        method: InfluenceConfig = Field(InfluenceConfig(), description="Measure, regression, and share that is kept.")

        probes: PositiveInt = Field(
            480, description="Training sequences that are measured at the start of each part; at least two batches."
        )
        val_batch_size: PositiveInt = Field(32, description="Sequences of the target in a measurement.")

    config: Config
    needs = frozenset({"sample weights", "displaced weights"})

    def __init__(self, config: Config, *, name: str = "influence") -> None:
        super().__init__(config, name=name)
        self._model: InfluenceModel | None = None
        self._threshold = 0.0
        self._raw: list[Tensor] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be combined, and read the training data's tokens.

        Raises:
            TypeError: the module offers no loss per sequence.
            UsageError: another callback writes the weights too, there are several processes, or weights are sharded.
            ValueError: the engine cannot serve the module, or the datamodule lacks a set that is needed.
        """
        if stage != "fit":
            return
        super().setup(trainer, pl_module, stage)
        check_run(trainer, pl_module, engine="fd")
        if trainer.world_size > 1:
            raise UsageError(
                f"callback {self.name!r} selects in one process, and there are {trainer.world_size}: set devices=1"
            )
        with unchanged_randomness():
            self._raw = self.tokens_of(getattr(trainer, "datamodule", None), "train_dataset", "the raw data")

    def enter(self, trainer: Trainer, module: LightningModule, number: int) -> None:
        """Select anew.

        Raises:
            UsageError: the target or the training data cannot be used.
            RuntimeError: no measured influence was finite.
        """
        if number == 0:
            return
        losses_of = LossesOf(module)
        parameters = trained_parameters(trainer, losses_of)
        step = next_step(trainer.optimizers[0], list(parameters.values()))
        batches = self._batches(trainer, module, number)
        sequences, influences = measured_influences(losses_of, parameters, batches, step, self.config.method.fd_scale)
        if not influences:
            raise RuntimeError(
                f"callback {self.name!r}: no measured influence was finite: the trained model diverges; lower its "
                "learning rate"
            )
        self._model = InfluenceModel.fit(sequences, influences, self.config.method.alpha)
        self._threshold = baselines.threshold_of(self._model.score(self._raw).tolist(), self.config.method.keep)

    def _batches(self, trainer: Trainer, module: LightningModule, number: int) -> Iterator[tuple[Any, Any]]:
        """Yield the pairs of batches that a part of training begins with, the same ones after resuming."""
        source, to_device = data_source(trainer, module), trainer.strategy.batch_to_device
        alone: dict[str, int] = {"rank": 0, "world_size": 1}
        training: DrawnBatches = training_batches(source, self.config.seed, **alone)
        target = target_batches(source, "val", self.config.val_batch_size, self.config.seed, **alone)
        count = max(2, -(-self.config.probes // training.batch_size))
        for n in range((number - 1) * count, number * count):
            yield to_device(training[n]), to_device(target[n])

    def weights(self, trainer: Trainer, module: LightningModule, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return equal weights for the sequences that are kept; uniform ones in the first part of training."""
        if self._model is None:
            return baselines.uniform_weights(batch_size(batch))
        return baselines.kept_weights(torch.from_numpy(self._model.score(sequences_of(batch))) >= self._threshold)

    def state_dict(self) -> dict[str, Any]:
        """Return the regression too: it was made with weights that have changed since."""
        coefficients = None if self._model is None else torch.from_numpy(self._model.coefficients)
        return {**super().state_dict(), "coefficients": coefficients, "threshold": self._threshold}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the regression of an interrupted run."""
        super().load_state_dict(state_dict)
        coefficients = state_dict["coefficients"]
        self._model = None if coefficients is None else InfluenceModel(coefficients.numpy())
        self._threshold = state_dict["threshold"]
