"""OfflineDistillation: learning from what a teacher has said of the student's own samples, with no teacher at hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from pydantic import Field, NonNegativeFloat, PositiveInt

from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.llm.distillation.cached import CachedDistillation, CachedDistillationConfig
from pangu_modules.llm.distillation.teacher_loading import load_teacher
from pangu_modules.llm.generation.store.identity import is_weights_hash
from pangu_modules.llm.generation.weights_hash import weights_hash
from pangu_modules.training.callback import RecipeCallback
from pangu_modules.training.module import PanguModule
from pangu_modules.training.objectives import Objective


class OfflineDistillation(RecipeCallback):
    """Trains towards scores in the batch: ``L = alpha_kd D(teacher, student) + alpha_ce CE``, per token.

    ``module.loss_per`` says whether the sequences of a step count the same or their tokens, which is the method's.
    It needs `DistillationData`. The objective has the callback's name, here ``distill``. Every `measure_every` steps it
    logs ``train/distill_outside``, the teacher's mass outside the tokens that are known,
    with a teacher at hand ``train/distill_seen``, the share of the divergence that these show, at the first step, and
    ``train/distill_staleness``, how far the student has moved from the one that sampled: ``KL(then || now)`` on the
    samples, in nats per token; above `max_staleness` it is said once that new samples are due.
    """

    class Config(BaseConfig):
        """The loss, and when samples are too old."""

        method: CachedDistillationConfig = Field(CachedDistillationConfig(), description="Losses and their weights.")
        measure_every: PositiveInt = Field(10, description="Steps between two measurements.")
        max_staleness: NonNegativeFloat = Field(0.5, description="Nats per token above which a new round is asked for.")
        teacher: str | None = Field(
            None,
            description="Hub id, folder, .gguf, 'smollm2', or a .ckpt of fit (set by teacher_from), to tell at the "
            "first step what share of the divergence is seen offline; empty: not told.",
        )
        allow_stale: bool = Field(False, description="Begin with samples of another student than the one trained.")

    config: Config

    def __init__(self, config: Config, *, name: str = "distillation") -> None:
        super().__init__(config, name=name)
        self._loss: CachedDistillation | None = None
        self._begun_as = ""  # hash of the weights before training
        self._said = False  # that the samples are too old

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the objective; only for training.

        Raises:
            TypeError: the module is not a `PanguModule` over a language model.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if not (isinstance(pl_module, PanguModule) and hasattr(pl_module.model, "config")):
            raise TypeError(f"callback {self.name!r} needs a PanguModule over a language model, e.g. CausalLM")
        # Not later: a strategy may change the type of the weights.
        self._begun_as = weights_hash(pl_module.model)
        self._loss = add_cached_objective(pl_module, self.config.method, self.name)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn what there is to compare with, and refuse to begin with samples of another student.

        Raises:
            ValueError: there are some, or the teacher to compare with has other tokens.
        """
        data = getattr(trainer, "datamodule", None)
        assert self._loss is not None
        self._loss.num_tokens = getattr(data, "num_tokens", None)
        if trainer.global_step == 0 and self.config.teacher is not None:
            self._loss.teacher = load_teacher(self.config.teacher, pl_module, f"callback {self.name!r}")
        sampled_by = {model for model in getattr(data, "sampled_by", ()) if is_weights_hash(model)}
        if trainer.global_step == 0 and sampled_by - {self._begun_as} and not self.config.allow_stale:
            raise ValueError(
                f"callback {self.name!r}: the samples are of another student ({', '.join(sorted(sampled_by))}) than "
                f"the one trained ({self._begun_as}): start from the checkpoint that sampled (start_from), sample "
                "anew, or go on with allow_stale=True"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Decide whether the batch is measured."""
        if self._loss is not None:
            self._loss.measures = trainer.global_step % self.config.measure_every == 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what was measured."""
        if self._loss is None or not self._loss.measures:
            return
        found = self._loss.figures
        for name, value in found.items():
            pl_module.log(f"train/{self.name}_{name}", value, batch_size=len(batch["input_ids"]))
        stale = float(found.get("staleness", 0.0))
        if stale > self.config.max_staleness and not self._said:
            self._said = True
            rank_zero_warn(
                f"callback {self.name!r}: at step {trainer.global_step} the student has moved {stale:.3f} nats a token "
                f"from the one that sampled (max_staleness={self.config.max_staleness:g}): sample anew, a round is due"
            )


def add_cached_objective(module: Any, method: CachedDistillationConfig, name: str) -> CachedDistillation:
    """Give a module the objective, and its own language-model loss the weight `alpha_ce`; at 0 it is not computed."""
    own = module.objectives.pop("language_modelling", None)
    if method.alpha_ce > 0:
        if own is None:
            raise ValueError(f"callback {name!r}: alpha_ce weighs the objective language_modelling: none here")
        module.objectives["language_modelling"] = replace(own, weight=method.alpha_ce)
    if method.divergence == "reverse_kl":
        rank_zero_info(
            f"callback {name!r}: reverse KL over the teacher's likeliest tokens takes the student's mass elsewhere as "
            "one bucket, and is a poor estimate where that is large: look at its share, or take more tokens"
        )
    loss = CachedDistillation(method)
    if method.alpha_kd > 0:
        module.objectives[name] = Objective(loss, weight=method.alpha_kd, packed=True)
    return loss
