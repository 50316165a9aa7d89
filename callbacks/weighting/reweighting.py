"""DWMReweighting: train a language model on batches whose sequences a small model weighs, and train that model too.

Yu et al., "LLM Data Selection and Utilization via Dynamic Bi-level Optimization" (ICML 2025, arXiv:2507.16178). The
mathematics is in `pangu_modules.llm.weighting`; here is when it happens.

Training is cut into rounds of equally many optimizer steps; in the first ones weights are uniform. What follows
depends on the mode:

- staged, ``lm_in_phase_a="virtual"``: at the first batch of a round the trained model waits while the weighting model
  takes all its updates. Their training batches are drawn apart from the training loader, whose order does not change;
  then the weighting model is frozen for the round.
- staged, ``"real"``: the first batches of a round serve for an update each before they are trained on.
- online: every `dwm_every` optimizer steps the batch serves for an update before it is trained on.

The round is a function of the optimizer step, and what update n of a run draws a function of (seed, n). Stored are the
weighting model, its optimizer and a few counters. A checkpoint falls between two batches of training; a run killed
among a round's virtual updates repeats them. With gradient accumulation, weights are those of a micro-batch.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.weighting.checks import check_run, complete_config, steps_of
from callbacks.weighting.config import ReweightingConfig
from callbacks.weighting.learner import Learner
from callbacks.weighting.report import Record
from callbacks.weighting.schedule import with_present_keys
from pangu_modules.llm.weighting.features import READERS, FeatureReader, KeptModel, is_kept, keep_model
from pangu_modules.llm.weighting.model import DataWeightingModel
from pangu_modules.llm.weighting.saving import (
    encoder_folder,
    find_encoder,
    load_rounds,
    round_file,
    save_weighting_model,
)
from pangu_modules.llm.weighting.update import UpdateResult, Weighed, weigh
from pangu_modules.training.callback import RecipeCallback, run_folder
from pangu_modules.training.module import batch_size
from pangu_modules.training.processes import Processes
from pangu_modules.training.randomness import unchanged_randomness


class DWMReweighting(RecipeCallback):
    """Writes ``batch["sample_weight"]`` from a data weighting model that learns what helps the target data.

    It runs on any `PanguModule`, and on any LightningModule with ``sequence_losses(batch)`` (see
    `pangu_modules.llm.weighting.protocol`). Each round's weighting model is saved as ``dwm_round{k}.safetensors`` in
    the run's folder; `frozen` uses those of another run, with the models it kept (`keep_encoder`) where their encoder
    is 'lm'. Mean weights by domain and round go to the run's report.
    """

    class Config(ReweightingConfig):
        """Schedule, target, and the method."""

    config: Config
    needs = frozenset({"sample weights", "displaced weights"})

    def __init__(self, config: Config, *, name: str = "dwm") -> None:
        super().__init__(config, name=name)
        if config.frozen is not None:  # nothing learns, so nothing is moved
            self.needs = frozenset({"sample weights"})
        self.round = -1  # the round training is in
        self.updates_in_round = 0
        self.model: DataWeightingModel | None = None  # of the current round
        self.learner: Learner | None = None  # while training; none with frozen models
        self._frozen: dict[int, DataWeightingModel] = {}
        self._kept: KeptModel | None = None  # what the frozen model of the current round reads
        self._reader: FeatureReader | None = None
        self._last_online = -1  # optimizer step of the last update
        self._loaded: dict[str, Any] | None = None
        self._weighed: Weighed | None = None  # the current batch
        self._results: list[UpdateResult] = []  # of the updates before the current batch
        self._record = Record(name)

    # Setting up.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Build or load the weighting model; only for training.

        Raises:
            TypeError: the module offers no losses per sequence.
            ValueError: module, engine, strategy or another callback does not allow it.
        """
        if stage != "fit":
            return
        super().setup(trainer, pl_module, stage)
        check_run(trainer, pl_module, self.config.method.engine if self.config.frozen is None else None)
        config = self.config.method.model
        if self.config.frozen is not None:
            self._frozen = load_rounds(self.config.frozen)
            config = next(iter(self._frozen.values())).config
        if config.encoder in READERS and not self._kept_folders():
            self._reader = READERS[config.encoder](pl_module)
        config = complete_config(config, pl_module, self._reader)
        if self.config.frozen is None:
            with unchanged_randomness(accelerator=True):
                torch.manual_seed(self.config.seed)
                self.model = config.build()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find data, steps and parameters, and take over the state of an interrupted run.

        Raises:
            UsageError: the target cannot be used, or the number of steps is unknown.
        """
        self._total_steps = steps_of(trainer)
        self._group = Processes.current() if self.config.method.sync_weights else Processes()
        for model in self._frozen.values():
            model.to(trainer.strategy.root_device)
        if self.model is not None and not self._frozen:
            self.model.to(trainer.strategy.root_device)
            self.learner = Learner(self.model, self.config, self.name, trainer, pl_module, self._reader)
        self._restore(trainer)

    # Training.

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: MutableMapping[str, Any], batch_idx: int
    ) -> None:
        """Update the weighting model if it is time, and write the weights of the batch.

        Raises:
            ValueError: the batch has one sequence, no target token, or weights already.
            RuntimeError: ten hypergradients in a row were not finite.
        """
        self._weighed, self._results = None, []
        number = self.config.round_of(trainer.global_step, self._total_steps)
        if number != self.round:
            self._enter(trainer, number)
        if number < self.config.warmup_rounds or self.model is None:
            return
        if "sample_weight" in batch:
            raise ValueError(
                f"callback {self.name!r}: the batch has a sample_weight already; remove what writes it, or the callback"
            )
        if self.learner is not None and self.config.learns_in(number):
            self._learn(self.learner, trainer, batch)
        self._write_weights(self.model, batch)

    def _enter(self, trainer: Trainer, number: int) -> None:
        """Leave a round and begin the next."""
        self._leave(trainer)
        self.round, self.updates_in_round = number, 0
        self._record.begin(number)
        self._choose_frozen(trainer)

    def _choose_frozen(self, trainer: Trainer) -> None:
        """Take the frozen model of the round, or the last one before it; none in the warm-up of that run."""
        if not self._frozen:
            return
        earlier = [number for number in self._frozen if number <= self.round]
        self.model = self._frozen[max(earlier)] if earlier else None
        if earlier and max(earlier) in self._kept_folders():
            with unchanged_randomness(accelerator=True):
                self._kept = KeptModel(self._kept_folders()[max(earlier)]).to(trainer.strategy.root_device)

    def _kept_folders(self) -> dict[int, Path]:
        """Return the language models that the run in `frozen` kept, by round."""
        folders = {number: find_encoder(str(self.config.frozen), number) for number in self._frozen}
        kept = {number: folder for number, folder in folders.items() if is_kept(folder)}
        if kept and len(kept) < len(folders):
            missing = ", ".join(folder.name for number, folder in folders.items() if number not in kept)
            raise ValueError(
                f"callback {self.name!r}: {self.config.frozen!r} lacks {missing}: its run did not finish; finish it, "
                "or remove the weighting models of those rounds"
            )
        return kept

    def _learn(self, learner: Learner, trainer: Trainer, batch: Any) -> None:
        """Take the updates that are due before this batch."""
        config = self.config
        if config.mode == "online":
            due = trainer.global_step % config.dwm_every == 0 and trainer.global_step != self._last_online
            self._last_online = trainer.global_step
            self._results = [learner.update(batch)] if due else []
        elif config.lm_in_phase_a == "real":
            self._results = [learner.update(batch)] if self.updates_in_round < config.dwm_steps else []
        else:
            self._results = [learner.update() for _ in range(config.dwm_steps - self.updates_in_round)]
        self.updates_in_round += len(self._results)
        if self._results and config.mode == "staged" and self.updates_in_round == config.dwm_steps:
            self._save(trainer)
            self._keep(trainer)

    def _write_weights(self, model: DataWeightingModel, batch: MutableMapping[str, Any]) -> None:
        """Write the weights now, or, where they need the trained model's forward pass, in its middle."""

        def write(features: Tensor | None) -> None:
            with torch.no_grad():
                self._weighed = weigh(model, batch, features, self._group)
                batch["sample_weight"].copy_(self._weighed.sample_weight)

        # Losses are weighted after the forward pass; filled in place, the weights reach copies of the batch too.
        batch["sample_weight"] = torch.ones(batch_size(batch), device=next(model.parameters()).device)
        if self._reader is None:
            write(None if self._kept is None else self._kept(batch))
        else:
            self._reader.expect(batch, write)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log weights and hypergradients, and count the domains.

        Raises:
            RuntimeError: the module did not run the model whose hidden states the weights need.
        """
        if self._reader is not None and self._reader.forget():
            raise RuntimeError(
                f"callback {self.name!r}: training_step did not run module.model, from which encoder='lm' weighs the "
                "batch: take encoder='tiny'"
            )
        values = self._record.batch(self.round, batch, self._weighed, self._results, trainer)
        pl_module.log_dict(values, batch_size=batch_size(batch))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the validation loss for the report's table of rounds."""
        metric = getattr(pl_module, "monitor", ("val/loss", "min"))[0]
        if not trainer.sanity_checking and metric in trainer.callback_metrics and self.round >= 0:
            self._record.validated(self.round, float(trainer.callback_metrics[metric]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last round's weighting model and add the tables to the report."""
        self._leave(trainer)
        self._record.write(trainer)

    def _leave(self, trainer: Trainer) -> None:
        """Save what the round learned to its end."""
        self._save(trainer)
        if self.config.mode == "online":
            self._keep(trainer)

    def _save(self, trainer: Trainer) -> None:
        """Write the weighting model of the current round to the run's folder."""
        folder = run_folder(trainer) if trainer.is_global_zero else None
        if self.learner is not None and self.round >= self.config.warmup_rounds and folder is not None:
            save_weighting_model(self.learner.model, round_file(folder, self.round))

    def _keep(self, trainer: Trainer) -> None:
        """Keep the trained model as the weighting model of the current round has just read it, if it is to be kept."""
        learned = self.learner is not None and self.round >= self.config.warmup_rounds
        folder = run_folder(trainer) if self.config.keep_encoder and trainer.is_global_zero else None
        if learned and folder is not None:
            keep_model(trainer.lightning_module, encoder_folder(folder, self.round))

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Return the weighting model, its optimizer, the position in the schedule, and the sums for the report."""
        if self._loaded is not None:
            return self._loaded
        return {
            "round": self.round,
            "updates_in_round": self.updates_in_round,
            "last_online": self._last_online,
            "learner": None if self.learner is None else self.learner.state_dict(),
            "record": self._record.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a stored state until training starts, when model and optimizer are on their device."""
        self._loaded = state_dict

    def _restore(self, trainer: Trainer) -> None:
        state, self._loaded = self._loaded, None
        if state is None:
            return
        state = with_present_keys(state)
        if (state["learner"] is None) != (self.learner is None):
            there = "frozen weighting models" if state["learner"] is None else "a weighting model in training"
            raise ValueError(
                f"callback {self.name!r}: the interrupted run had {there}; resume it with the same `frozen` as before"
            )
        self.round, self.updates_in_round = state["round"], state["updates_in_round"]
        self._last_online = state["last_online"]
        self._record.load_state_dict(state["record"])
        if self.learner is not None:
            self.learner.load_state_dict(state["learner"])
        self._choose_frozen(trainer)
