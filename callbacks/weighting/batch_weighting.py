"""BatchWeighting: what DWM is compared with - weights that are uniform, random, by loss, or by offline scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from callbacks.weighting.checks import check_run
from callbacks.weighting.recorded import RecordedWeighting, part_of
from pangu_modules.llm.weighting.baselines import weights as baselines
from pangu_modules.llm.weighting.baselines.ngrams import Scorer, Selection, offline_scorer, sequences_of
from pangu_modules.llm.weighting.protocol import per_sequence_losses
from pangu_modules.training.module import batch_size


class BatchWeighting(RecordedWeighting):
    """Writes ``batch["sample_weight"]`` (batch,) without learning during training what helps the target.

    The offline methods score a sequence by its tokens, from the datamodule's validation set (the target) and its
    training set, and keep the best share of the training data; within a batch the kept sequences weigh the same, a
    batch without any is uniform. All else of training stays as it is, so that methods differ in the weights alone.

    What is logged and reported is what `RecordedWeighting` says.
    """

    class Config(RecordedWeighting.Config):
        """Method, and the parameters of each."""

        method: Literal["uniform", "random", "loss", Selection] = Field(
            description="uniform; random with a given ESS; loss: softmax over the batch's losses; perplexity: bigrams "
            "of the target; dsir: hashed n-gram importance; classifier: logistic regression, target against raw data."
        )
        ess: tuple[float, ...] = Field(
            (0.7,), description="ESS / batch of random weights; several: of equally long parts of training."
        )
        prefer: Literal["high", "low"] = Field("high", description="Which losses weigh more; loss only.")
        tau: PositiveFloat = Field(1.0, description="Temperature of the losses, in nats per token; loss only.")
        keep: float = Field(0.5, gt=0, le=1, description="Share of the training data that offline methods keep.")

        @model_validator(mode="after")
        def _check_ess(self) -> Self:
            for share in self.ess or (0.0,):
                if not 0 < share <= 1:
                    raise ValueError(f"ess={self.ess}: each is a share of the batch, above 0 and at most 1")
            return self

    config: Config

    def __init__(self, config: Config, *, name: str = "weighting") -> None:
        super().__init__(config, name=name)
        self._scorer: Scorer | None = None
        self._threshold = 0.0

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
        if self.config.method in get_args(Selection):
            self._fit(cast(Selection, self.config.method), getattr(trainer, "datamodule", None))

    def _fit(self, method: Selection, data: Any) -> None:
        with isolate_rng(include_cuda=False):
            target = self.tokens_of(data, "val_dataset", "the target")
            raw = self.tokens_of(data, "train_dataset", "the raw data")
        self._scorer = offline_scorer(method, target, raw, self.config.seed)
        self._threshold = baselines.threshold_of(self._scorer.score(raw).tolist(), self.config.keep)

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
