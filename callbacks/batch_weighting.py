"""BatchWeighting: what DWM is compared with - weights that are uniform, random, by loss, or by offline scores."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from callbacks.base import RecipeCallback
from callbacks.dwm_checks import check_run, steps_of
from callbacks.dwm_report import Record
from pangu_modules.config import Config as BaseConfig
from pangu_modules.llm.weighting import baselines
from pangu_modules.llm.weighting.baselines_ngrams import BigramPerplexity, ImportanceRatio, QualityClassifier, Scorer
from pangu_modules.llm.weighting.protocol import per_sequence_losses
from pangu_modules.llm.weighting.update import Weighed
from pangu_modules.module import batch_size

Value = TypeVar("Value")
OFFLINE = ("perplexity", "dsir", "classifier")


class BatchWeighting(RecipeCallback):
    """Writes ``batch["sample_weight"]`` (batch,) without learning during training what helps the target.

    The offline methods score a sequence by its tokens, from the datamodule's validation set (the target) and its
    training set, and keep the best share of the training data; within a batch the kept sequences weigh the same, a
    batch without any is uniform. All else of training stays as it is, so that methods differ in the weights alone.

    Logged as by DWM: ``<name>/ess``, the effective batch size, ``<name>/w_max``, and with ``batch["domain"]`` the mean
    weight of each domain in a batch, ``<name>/weight/<domain>`` (1 is an ordinary sequence). The report has the same
    tables, with training cut into `n_stages` equal parts.
    """

    class Config(BaseConfig):
        """Method, and the parameters of each."""

        method: Literal["uniform", "random", "loss", "perplexity", "dsir", "classifier"] = Field(
            description="uniform; random with a given ESS; loss: softmax over the batch's losses; perplexity: bigrams "
            "of the target; dsir: hashed n-gram importance; classifier: logistic regression, target against raw data."
        )
        ess: tuple[float, ...] = Field(
            (0.7,), description="ESS / batch of random weights; several: of equally long parts of training."
        )
        prefer: Literal["high", "low"] = Field("high", description="Which losses weigh more; loss only.")
        tau: PositiveFloat = Field(1.0, description="Temperature of the losses, in nats per token; loss only.")
        keep: float = Field(0.5, gt=0, le=1, description="Share of the training data that offline methods keep.")
        fit_sequences: PositiveInt = Field(
            20_000, description="Sequences of target and training data that offline methods look at, at most."
        )
        n_stages: PositiveInt = Field(5, description="Equal parts of training that the report tells weights of.")
        seed: NonNegativeInt = Field(0, description="Seed of what is random.")

        @model_validator(mode="after")
        def _check_ess(self) -> Self:
            for share in self.ess or (0.0,):
                if not 0 < share <= 1:
                    raise ValueError(f"ess={self.ess}: each is a share of the batch, above 0 and at most 1")
            return self

    config: Config
    needs: ClassVar[frozenset[str]] = frozenset({"sample weights"})

    def __init__(self, config: Config, *, name: str = "weighting") -> None:
        super().__init__(config, name=name)
        self._scorer: Scorer | None = None
        self._threshold = 0.0
        self._stage = -1
        self._weighed: Weighed | None = None  # the current batch
        self._record = Record(name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be combined; make the scores of an offline method.

        Raises:
            TypeError: the module offers no loss per sequence.
            UsageError: another callback writes the weights too.
            ValueError: the datamodule lacks a set that is needed.
        """
        if stage != "fit":
            return
        check_run(self, trainer, pl_module, engine=None)
        if self.config.method in OFFLINE:
            self._fit(getattr(trainer, "datamodule", None))

    def _fit(self, data: Any) -> None:
        with isolate_rng(include_cuda=False):
            target = self._read(data, "val_dataset", "the target")
            raw = self._read(data, "train_dataset", "the raw data")
        if self.config.method == "perplexity":
            self._scorer = BigramPerplexity(target, raw)
        elif self.config.method == "dsir":
            self._scorer = ImportanceRatio(target, raw, self.config.seed)
        else:
            self._scorer = QualityClassifier(target, raw)
        self._threshold = baselines.threshold_of(self._scorer.score(raw).tolist(), self.config.keep)

    def _read(self, data: Any, name: str, what: str) -> list[Tensor]:
        """Return the tokens of a dataset, of sequences drawn by the seed where there are many."""
        dataset = getattr(data, name, None)
        if dataset is None or len(dataset) == 0:
            raise ValueError(
                f"callback {self.name!r}: method={self.config.method!r} needs {what}, {name} of the datamodule, and "
                f"{type(data).__name__} has none"
            )
        order = np.random.default_rng(self.config.seed).permutation(len(dataset))[: self.config.fit_sequences]
        return [tokens for index in order.tolist() for tokens in sequences_of(as_batch(dataset[index]))]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: MutableMapping[str, Any], batch_idx: int
    ) -> None:
        """Write the weights, B w, into the batch."""
        stage = part_of(range(self.config.n_stages), trainer)
        if stage != self._stage:
            self._stage = stage
            self._record.begin(stage)
        weights = self.weights(trainer, pl_module, batch, batch_idx).to(pl_module.device)
        self._weighed = Weighed(own=weights, whole=weights)
        batch["sample_weight"] = self._weighed.sample_weight

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the weights, and count the domains."""
        values = self._record.batch(self._stage, batch, self._weighed, (), trainer)
        pl_module.log_dict(values, batch_size=batch_size(batch))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the validation loss for the report's table of stages."""
        loss = trainer.callback_metrics.get("val/loss")
        if not trainer.sanity_checking and loss is not None and self._stage >= 0:
            self._record.validated(self._stage, float(loss))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the tables for the report."""
        self._record.leave(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums for the report; scores and weights are made again from data and seed."""
        return {"stage": self._stage, "record": self._record.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the sums of an interrupted run."""
        self._stage = state_dict["stage"]
        self._record.load_state_dict(state_dict["record"])

    def weights(self, trainer: Trainer, module: LightningModule, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the weights of a batch, (batch,), which sum to 1."""
        config, size = self.config, batch_size(batch)
        if config.method == "uniform":
            return baselines.uniform_weights(size)
        if config.method == "random":
            share = part_of(config.ess, trainer)
            position = [config.seed, trainer.global_rank, trainer.current_epoch, batch_idx]
            return baselines.random_weights(size, share, np.random.default_rng(position))
        if config.method == "loss":
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                losses = per_sequence_losses(module, batch)
            return baselines.loss_weights(losses, config.prefer, config.tau)
        assert self._scorer is not None
        scores = torch.from_numpy(self._scorer.score(sequences_of(batch)))
        return baselines.kept_weights(scores >= self._threshold)


def sequences_of(batch: Mapping[str, Any]) -> list[Tensor]:
    """Return the tokens of each sequence of a batch without padding, (tokens,) int64 each, on the CPU."""
    rows, mask = batch["input_ids"].cpu(), batch.get("attention_mask")
    if mask is None:
        return list(rows.long())
    return [row[keep.bool()].long() for row, keep in zip(rows, mask.cpu(), strict=True)]


def as_batch(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sample as a batch of one."""
    return {name: torch.as_tensor(value)[None] for name, value in sample.items()}


def part_of(values: Sequence[Value], trainer: Trainer) -> Value:
    """Return the value of the part of training that the next step lies in; the parts are equally long."""
    return values[min(len(values) - 1, trainer.global_step * len(values) // steps_of(trainer))]
