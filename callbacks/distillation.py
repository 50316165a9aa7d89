"""Distillation: a frozen teacher's logits as an objective of training, e.g. to recover what pruning took."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from pydantic import Field
from torch import nn

from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.common.names import check_source
from pangu_modules.llm.distillation.teacher import DistillationConfig, distillation_objective
from pangu_modules.llm.distillation.teacher_loading import load_teacher
from pangu_modules.llm.models.names import EMBEDDED_PACKAGES
from pangu_modules.training.callback import RecipeCallback, run_folder
from pangu_modules.training.fingerprint import fingerprint
from pangu_modules.training.module import PanguModule
from pangu_modules.training.objectives import Objective

SELF = "self"
TEACHER_FOLDER = "teacher"


class Distillation(RecipeCallback):
    """Trains towards a teacher: ``L = lambda_ce CE + lambda_kd T^2 KL(teacher || student)``, per token.

    The teacher is no part of the module and of no checkpoint. With ``teacher="self"`` it is the model as it is when
    this callback is set up, so put it before the callback that prunes; it is kept in the run's folder, where a resumed
    run finds it again. Any other teacher is loaded by its name each time, which stores nothing.

    The objective has the callback's name.
    """

    class Config(BaseConfig):
        """The teacher, where it runs, and the loss."""

        renamed = {name: f"method.{name}" for name in ("lambda_kd", "lambda_ce", "temperature", "chunk_tokens")}

        method: DistillationConfig = Field(DistillationConfig(), description="Losses and their weights.")
        teacher: str = Field(
            SELF,
            description="Hub id, folder, .gguf, 'smollm2', or a .ckpt of fit (set by teacher_from); 'self': the model "
            "before pruning, kept in the run.",
        )
        device: str | None = Field(None, description="Where the teacher runs, e.g. 'cuda:1'; empty: with the batch.")

    config: Config
    needs = frozenset({"original model"})

    def __init__(self, config: Config, *, name: str = "distillation") -> None:
        super().__init__(config, name=name)
        if config.method.lambda_kd > 0:
            check_source(config.teacher, "teacher", (SELF, *EMBEDDED_PACKAGES))
        if config.teacher != SELF:
            self.needs = frozenset()
        self._fingerprint = ""  # of the teacher
        self._loaded: str | None = None  # the teacher's fingerprint in the checkpoint a run resumes from
        self._found = False  # whether the teacher was in the run's folder already

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the teacher and add the objective; only for training.

        Raises:
            TypeError: the module is not a `PanguModule` over a language model.
            ValueError: the teacher cannot be found or has another vocabulary.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if not (isinstance(pl_module, PanguModule) and hasattr(pl_module.model, "config")):
            raise TypeError(f"callback {self.name!r} needs a PanguModule over a language model, e.g. CausalLM")
        self._weigh_language_modelling(pl_module)
        if self.config.method.lambda_kd == 0:
            return
        teacher = self._teacher(trainer, pl_module)
        self._fingerprint = fingerprint(teacher)
        loss = distillation_objective(
            teacher,
            temperature=self.config.method.temperature,
            chunk_tokens=self.config.method.chunk_tokens,
            device=self.config.device,
            padded=True,  # checked just now
        )
        pl_module.objectives[self.name] = Objective(loss, weight=self.config.method.lambda_kd, packed=True)

    def _weigh_language_modelling(self, module: PanguModule) -> None:
        """Give the module's own loss its weight; at 0 it is not computed."""
        own = module.objectives.pop("language_modelling", None)
        if self.config.method.lambda_ce > 0:
            if own is None:
                raise ValueError(
                    f"callback {self.name!r}: lambda_ce weighs the objective language_modelling: none here"
                )
            module.objectives["language_modelling"] = replace(own, weight=self.config.method.lambda_ce)

    def _teacher(self, trainer: Trainer, module: PanguModule) -> nn.Module:
        from pangu_modules.llm.export.transformers import without_adapters
        from pangu_modules.llm.models.loading import load_causal_lm

        if self.config.teacher != SELF:
            return load_teacher(self.config.teacher, module, f"callback {self.name!r}")
        folder = self._teacher_folder(trainer)
        self._found = folder is not None and (folder / "config.json").is_file()
        if not self._found:
            self._refuse_pruned(module, folder)
        if folder is None:  # without a folder the teacher lives as long as the run
            return copy.deepcopy(without_adapters(module.model))
        if not self._found:
            self._keep(trainer, module, folder)
        trust = bool(getattr(module.config, "trust_remote_code", False))
        return load_causal_lm(str(folder), trust_remote_code=trust)

    def _teacher_folder(self, trainer: Trainer) -> Path | None:
        """Return where the teacher is kept, the same on all processes; None where the run has no folder."""
        folder = trainer.strategy.broadcast(run_folder(trainer))
        return None if folder is None else Path(folder) / TEACHER_FOLDER / self.name

    def _refuse_pruned(self, module: PanguModule, folder: Path | None) -> None:
        if any(plan.kind == "shape" for plan in module.config.structure):
            there = "the run has no folder that holds a teacher" if folder is None else f"{folder} holds no teacher"
            raise ValueError(
                f"callback {self.name!r}: teacher='self' is the model before pruning, but this one is pruned already "
                f"and {there}: put this callback before the one that prunes, resume in the run's own folder, or name "
                "the teacher's folder or hub id"
            )

    def _keep(self, trainer: Trainer, module: PanguModule, folder: Path) -> None:
        """Write the model as it is now to the run's folder, from one process."""
        from pangu_modules.common.files import atomic_folder
        from pangu_modules.llm.export.transformers import without_adapters
        from pangu_modules.llm.models.conversion import MODEL_FILE
        from pangu_modules.llm.models.messages import quiet_transformers

        if trainer.is_global_zero:
            model: Any = without_adapters(module.model)
            with atomic_folder(folder, holding=MODEL_FILE, replace=False) as temporary, quiet_transformers():
                model.save_pretrained(temporary)
        trainer.strategy.barrier("Distillation")

    def state_dict(self) -> dict[str, Any]:
        """Return what identifies the teacher."""
        return {"teacher": self._fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what identified the teacher of the run that is resumed."""
        self._loaded = state_dict["teacher"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse another teacher than the interrupted run's, and one that an earlier run left in the folder.

        Raises:
            ValueError: it is another one.
        """
        folder = run_folder(trainer)
        there = "" if folder is None else f", or remove {folder / TEACHER_FOLDER}"
        remedy = f"give the run a folder of its own{there}"
        if self._loaded is not None and self._loaded != self._fingerprint:
            raise ValueError(
                f"callback {self.name!r}: teacher {self.config.teacher!r} is not that of the interrupted run; name "
                f"the same one, or {remedy}"
            )
        if self._loaded is None and self._found:
            raise ValueError(f"callback {self.name!r}: the teacher in the folder is from an earlier run; {remedy}")
        self._loaded = None
