"""RecordedWeighting: what DWM's baselines share - they write weights into each batch, and tell of them as DWM does."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from callbacks.weighting.checks import steps_of
from callbacks.weighting.report import Record
from callbacks.weighting.schedule import with_present_keys
from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.llm.weighting.baselines.ngrams import sequences_of
from pangu_modules.llm.weighting.update import Weighed
from pangu_modules.training.callback import RecipeCallback
from pangu_modules.training.module import batch_size

Value = TypeVar("Value")


class RecordedWeighting(RecipeCallback):
    """Writes ``batch["sample_weight"]`` (batch,), from `weights`.

    Logged as by DWM: ``<name>/ess``, the effective batch size, ``<name>/w_max``, and with ``batch["domain"]`` the mean
    weight of each domain in a batch, ``<name>/weight/<domain>`` (1 is an ordinary sequence). The report has the same
    tables, with training cut into `num_rounds` equal parts.
    """

    class Config(BaseConfig):
        """What is read of the data, and the parts of training."""

        renamed = {"n_stages": "num_rounds"}

        fit_sequences: PositiveInt = Field(
            20_000, description="Sequences of target and training data that are looked at to make scores, at most."
        )
        num_rounds: PositiveInt = Field(5, description="Equal parts of training that the report tells weights of.")
        seed: NonNegativeInt = Field(0, description="Seed of what is random.")

    config: Config
    needs = frozenset({"sample weights"})

    def __init__(self, config: Config, *, name: str) -> None:
        super().__init__(config, name=name)
        self._round = -1
        self._weighed: Weighed | None = None  # the current batch
        self._record = Record(name)

    @abstractmethod
    def weights(self, trainer: Trainer, module: LightningModule, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the weights of a batch, (batch,), which sum to 1."""

    def enter(self, trainer: Trainer, module: LightningModule, number: int) -> None:
        """Do what a part of training begins with; the first is 0."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: MutableMapping[str, Any], batch_idx: int
    ) -> None:
        """Write the weights, B w, into the batch."""
        number = part_of(range(self.config.num_rounds), trainer)
        if number != self._round:
            self._round = number
            self._record.begin(number)
            self.enter(trainer, pl_module, number)
        weights = self.weights(trainer, pl_module, batch, batch_idx).to(pl_module.device)
        self._weighed = Weighed(own=weights, whole=weights)
        batch["sample_weight"] = self._weighed.sample_weight

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the weights, and count the domains."""
        values = self._record.batch(self._round, batch, self._weighed, (), trainer)
        pl_module.log_dict(values, batch_size=batch_size(batch))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the validation loss for the report's table of rounds."""
        loss = trainer.callback_metrics.get("val/loss")
        if not trainer.sanity_checking and loss is not None and self._round >= 0:
            self._record.validated(self._round, float(loss))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the tables to the report."""
        self._record.write(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums for the report; what follows from data and seed is made again."""
        return {"round": self._round, "record": self._record.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the sums of an interrupted run."""
        state = with_present_keys(state_dict)
        self._round = state["round"]
        self._record.load_state_dict(state["record"])

    def tokens_of(self, data: Any, name: str, what: str) -> list[Tensor]:
        """Return the tokens of a dataset, of sequences drawn by the seed where there are many.

        Raises:
            ValueError: the datamodule has no such dataset, or an empty one.
        """
        dataset = getattr(data, name, None)
        if dataset is None or len(dataset) == 0:
            raise ValueError(
                f"callback {self.name!r}: scoring sequences needs {what}, {name} of the datamodule, and "
                f"{type(data).__name__} has none"
            )
        order = np.random.default_rng(self.config.seed).permutation(len(dataset))[: self.config.fit_sequences]
        return [tokens for index in order.tolist() for tokens in sequences_of(as_batch(dataset[index]))]


def as_batch(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sample as a batch of one."""
    return {name: torch.as_tensor(value)[None] for name, value in sample.items()}


def part_of(values: Sequence[Value], trainer: Trainer) -> Value:
    """Return the value of the part of training that the next step lies in; the parts are equally long."""
    return values[min(len(values) - 1, trainer.global_step * len(values) // steps_of(trainer))]
