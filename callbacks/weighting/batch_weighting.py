"""BatchWeighting: what DWM is compared with - weights that are uniform, random, by loss, or by offline scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from pydantic import Field
from torch import Tensor

from callbacks.weighting.checks import check_run
from callbacks.weighting.recorded import RecordedWeighting, part_of
from pangu_modules.llm.weighting.baselines import weights as baselines
from pangu_modules.llm.weighting.baselines.ngrams import Scorer, Selection, offline_scorer, sequences_of
from pangu_modules.llm.weighting.protocol import per_sequence_losses
from pangu_modules.training.module import batch_size
from pangu_modules.training.randomness import unchanged_randomness


class BatchWeighting(RecordedWeighting):
    """Writes ``batch["sample_weight"]`` (batch,) without learning during training what helps the target.

    The offline methods score a sequence by its tokens, from the datamodule's validation set (the target) and its
    training set, and keep the best share of the training data; within a batch the kept sequences weigh the same, a
    batch without any is uniform. All else of training stays as it is, so that methods differ in the weights alone.

    What is logged and reported is what `RecordedWeighting` says.
    """

    class Config(RecordedWeighting.Config):
        """What is read of the data, and the weights."""

        renamed = {
            **RecordedWeighting.Config.renamed,
            "method": "method.kind",
            "ess": "method.ess",
            "prefer": "method.prefer",
            "tau": "method.tau",
            "keep": "method.keep",
        }

        method: baselines.BaselineConfig = Field(description="Kind of weights, and the parameters of each.")

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
        super().setup(trainer, pl_module, stage)
        check_run(trainer, pl_module, engine=None)
        if self.config.method.kind in get_args(Selection):
            self._fit(cast(Selection, self.config.method.kind), getattr(trainer, "datamodule", None))

    def _fit(self, method: Selection, data: Any) -> None:
        with unchanged_randomness():
            target = self.tokens_of(data, "val_dataset", "the target")
            raw = self.tokens_of(data, "train_dataset", "the raw data")
        self._scorer = offline_scorer(method, target, raw, self.config.seed)
        self._threshold = baselines.threshold_of(self._scorer.score(raw).tolist(), self.config.method.keep)

    def weights(self, trainer: Trainer, module: LightningModule, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the weights of a batch, (batch,), which sum to 1."""
        method, size = self.config.method, batch_size(batch)
        if method.kind == "uniform":
            return baselines.uniform_weights(size)
        if method.kind == "random":
            share = part_of(method.ess, trainer)
            position = [self.config.seed, trainer.global_rank, trainer.current_epoch, batch_idx]
            return baselines.random_weights(size, share, np.random.default_rng(position))
        if method.kind == "loss":
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                losses = per_sequence_losses(module, batch)
            return baselines.loss_weights(losses, method.prefer, method.tau)
        assert self._scorer is not None
        scores = torch.from_numpy(self._scorer.score(sequences_of(batch)))
        return baselines.kept_weights(scores >= self._threshold)
