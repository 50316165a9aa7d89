"""Pruning callbacks: calibrate and prune a language model before training starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from pydantic import Field
from torch import nn

from callbacks.calibration import calibration_windows
from callbacks.pruning.perplexities import add_recovered
from callbacks.pruning.report import PruningRecord
from pangu_modules.common.cache import cache_folder
from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.common.files import write_atomically
from pangu_modules.llm.calibration.windows import CalibrationConfig
from pangu_modules.llm.lora import LoRAConfig, LoRAPlan, has_adapters
from pangu_modules.llm.pruning.plan import Layout, ShapePlan
from pangu_modules.llm.pruning.report import PruneReport
from pangu_modules.llm.pruning.short_gpt import ShortGPTConfig, drop_layers
from pangu_modules.llm.pruning.slimllm.config import SlimLLMConfig
from pangu_modules.llm.pruning.slimllm.walk import prune_slimllm
from pangu_modules.training.callback import RecipeCallback, run_folder
from pangu_modules.training.module import PanguModule
from pangu_modules.training.objectives import Batch
from pangu_modules.training.structure import find_plan


class PruningMethod(Protocol):
    """What the callbacks of this file read from a method's configuration."""

    @property
    def calibration(self) -> CalibrationConfig:
        """Calibration text the method wants."""


class PruningConfig(BaseConfig):
    """What every pruning callback has."""

    lora: LoRAConfig | None = Field(
        None, description="Insert adapters after pruning and train only them; empty: train all."
    )
    layout: Layout = Field(
        "auto", description="Exported form: uniform, padded, per_layer; auto is uniform if possible, else per_layer."
    )
    progress_folder: str | None = Field(
        "auto",
        description="Where finished layers are kept until all are done; a killed run goes on there. auto is in the "
        "cache ($PANGU_CACHE); null keeps nothing.",
    )
    measure: bool = Field(
        True, description="Report perplexity on the test set and speed before and after; needs a copy of the model."
    )


class PruningCallback(RecipeCallback):
    """Prunes ``module.model`` in `setup` on calibration text of the datamodule, and records the shapes as a plan.

    A module that already holds this callback's plan, as after a resume, is left alone. Training then recovers the
    model: plainly, with LoRA (`lora`), or under whatever objective other callbacks add. After `setup`, `report` says
    what was removed; it is None where there was nothing to do. A subclass names its method.
    """

    config: PruningConfig
    provides = frozenset({"pruned model", "new shapes"})

    def __init__(self, config: PruningConfig, *, name: str = "pruning") -> None:
        super().__init__(config, name=name)
        if config.lora is not None:
            self.provides = self.provides | {"adapters"}
        self.report: PruneReport | None = None

    @property
    def method(self) -> PruningMethod:
        """The pruning method with its settings."""
        raise TypeError(f"{type(self).__name__} does not define method")

    def prune(self, model: nn.Module, batches: Sequence[Batch], progress_folder: Path | None) -> PruneReport:
        """Prune the model in place on calibration batches; a method of several steps keeps those done in the folder."""
        raise TypeError(f"{type(self).__name__} does not define prune(model, batches, progress_folder)")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prune, unless the module holds this callback's plan already.

        Raises:
            ValueError: another callback has pruned the model or it has adapters, or the method cannot be applied.
            TypeError: the module is not a `PanguModule`.
        """
        super().setup(trainer, pl_module, stage)
        if not isinstance(pl_module, PanguModule):
            raise TypeError(f"callback {self.name!r} needs a PanguModule over a language model, e.g. CausalLM")
        structure = pl_module.config.structure
        if find_plan(structure, "shape", self.name) is not None:
            return
        self._refuse_what_does_not_compose(pl_module)
        measured = self.config.measure and trainer.is_global_zero
        record = PruningRecord(trainer, pl_module.model, self.name) if measured else None
        report = self._prune(trainer, pl_module)
        rank_zero_warn(f"callback {self.name!r}: {report.reach}")
        pl_module.restructure(
            ShapePlan.of(pl_module.model, report.kept_layers, source=self.name, layout=self.config.layout)
        )
        if record is not None:
            record.write(report)
        if self.config.lora is not None:
            pl_module.restructure(LoRAPlan(lora=self.config.lora, source=self.name))
        self.report = report
        self._write_report(trainer, report)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the perplexity after training to the report: the test ends a recipe's run."""
        if self.config.measure and trainer.is_global_zero:
            add_recovered(trainer, self.name)

    def _prune(self, trainer: Trainer, module: PanguModule) -> PruneReport:
        """Prune on the device that training will use; the model comes back to where it was."""
        batches = calibration_windows(trainer, self.method.calibration)
        home = next(module.model.parameters()).device
        folder = self.config.progress_folder
        parent = cache_folder() / "pruning" if folder == "auto" else Path(folder or "").expanduser()
        # Processes prune the same way; each keeps its own progress.
        progress = None if folder is None else parent / f"rank-{trainer.global_rank}"
        module.model.to(trainer.strategy.root_device)
        try:
            return self.prune(module.model, batches, progress)
        finally:
            module.model.to(home)

    def _refuse_what_does_not_compose(self, module: PanguModule) -> None:
        other = next((plan for plan in module.config.structure if plan.kind == "shape"), None)
        if other is not None:
            raise ValueError(
                f"callback {self.name!r}: the model was already pruned by callback {other.source!r}; remove one of the "
                "two, or prune in a stage of its own and start the next stage from its checkpoint"
            )
        if has_adapters(module.model):
            raise ValueError(
                f"callback {self.name!r}: the model has LoRA adapters, and pruning must come first: give lora to this "
                "callback instead of the module"
            )

    def _write_report(self, trainer: Trainer, report: PruneReport) -> None:
        folder = run_folder(trainer)
        if folder is not None and trainer.is_global_zero:
            write_atomically(folder / f"{self.name}.json", json.dumps(report.plain(), indent=1) + "\n")


class StructuredPruning(PruningCallback):
    """SlimLLM, and the baselines that are its walk with another importance (arXiv:2505.22689)."""

    class Config(PruningConfig):
        """What to prune, and what to do around it."""

        method: SlimLLMConfig = Field(SlimLLMConfig(), description="How much to prune, and by which importance.")

    config: Config

    @property
    def method(self) -> SlimLLMConfig:
        """SlimLLM's settings."""
        return self.config.method

    def prune(self, model: nn.Module, batches: Sequence[Batch], progress_folder: Path | None) -> PruneReport:
        """Walk through the layers; see `prune_slimllm`."""
        return prune_slimllm(model, self.method, batches, progress_folder)


class LayerDropping(PruningCallback):
    """ShortGPT: whole layers go, those that change the residual stream least (arXiv:2403.03853)."""

    class Config(PruningConfig):
        """How many layers to drop, and what to do around it."""

        method: ShortGPTConfig = Field(description="How many layers to drop.")

    config: Config

    @property
    def method(self) -> ShortGPTConfig:
        """ShortGPT's settings."""
        return self.config.method

    def prune(self, model: nn.Module, batches: Sequence[Batch], progress_folder: Path | None) -> PruneReport:
        """Drop layers after one forward pass, so there is no progress to keep; see `drop_layers`."""
        return drop_layers(model, self.method, batches)
