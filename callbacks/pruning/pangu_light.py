"""Pangu Light's callbacks: pruning with re-initialisation, and absorption of post-norms, before training starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from pydantic import Field
from torch import nn

from callbacks.calibration import calibration_windows
from callbacks.measuring import held_out_batches, on_device
from callbacks.pruning.structured import PruningCallback, PruningConfig
from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.llm.calibration.windows import CalibrationConfig
from pangu_modules.llm.models.perplexity import perplexity
from pangu_modules.llm.pruning.pangu_light.absorb import AbsorbConfig, AbsorbPlan, absorb_post_norms, check_absorption
from pangu_modules.llm.pruning.pangu_light.config import PanguLightConfig
from pangu_modules.llm.pruning.pangu_light.pipeline import compare_reinitialisations, prune_pangu_light
from pangu_modules.llm.pruning.pangu_light.report import PanguLightReport
from pangu_modules.llm.pruning.report import PruneReport
from pangu_modules.report.parts import add_table
from pangu_modules.training.callback import RecipeCallback, run_folder
from pangu_modules.training.module import PanguModule
from pangu_modules.training.objectives import Batch
from pangu_modules.training.structure import find_plan


class PanguLightPruning(PruningCallback):
    """Pangu Light, and the baselines that are its pipeline with parts switched off (arXiv:2505.20155).

    Recovery is training under the `Distillation` callback, which comes before this one in the recipe. With `measure`
    the report also holds the perplexity of this target with CLAP and SLNP on and off: neither is a sure gain.

    Post-norms of a sandwich model are absorbed here, before recovery, if ``method.absorb`` is enabled. To do that last,
    take `PostNormAbsorption` in a stage of its own.
    """

    class Config(PruningConfig):
        """The shape to prune to, and what to do around it."""

        method: PanguLightConfig = Field(description="Target shape, importance and re-initialisation.")

    config: Config

    def __init__(self, config: Config, *, name: str = "pruning") -> None:
        super().__init__(config, name=name)
        if config.method.absorb.enabled:
            self.provides = self.provides | {"absorbed norms"}

    @property
    def method(self) -> PanguLightConfig:
        """Pangu Light's settings."""
        return self.config.method

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prune as every pruning callback does, then absorb the post-norms if that is asked for.

        Raises:
            ValueError: absorption is asked for at the end, or what `PruningCallback.setup` raises.
        """
        absorb = self.method.absorb
        if absorb.enabled and absorb.order == "at_end":
            raise ValueError(
                f"callback {self.name!r}: absorb.order='at_end' comes after training: use the callback "
                "PostNormAbsorption in a last stage with trainer.max_epochs=0, or order='heal'"
            )
        super().setup(trainer, pl_module, stage)
        folder = run_folder(trainer) if self.config.measure and trainer.is_global_zero else None
        if folder is not None and isinstance(self.report, PanguLightReport):
            add_shapes(folder, self.name, self.report)
        if absorb.enabled:
            absorb_into(trainer, pl_module, absorb, self.method.calibration, self.name)

    def prune(self, model: nn.Module, batches: Sequence[Batch], progress_folder: Path | None) -> PruneReport:
        """Prune after one forward pass, so there is no progress to keep; see `prune_pangu_light`."""
        return prune_pangu_light(model, self.method, batches)

    def _prune(self, trainer: Trainer, module: PanguModule) -> PruneReport:
        if self.config.measure and trainer.is_global_zero and not self.method.laco:
            self._compare_parts(trainer, module)
        return super()._prune(trainer, module)

    def _compare_parts(self, trainer: Trainer, module: PanguModule) -> None:
        """Add a table of perplexities for CLAP and SLNP on and off, of copies of the model."""
        held_out, folder = held_out_batches(trainer), run_folder(trainer)
        if not held_out or folder is None:
            return
        batches = calibration_windows(trainer, self.method.calibration)
        with on_device(module.model, trainer.strategy.root_device):
            values = compare_reinitialisations(
                module.model, batches, self.method, lambda model: perplexity(model, held_out)
            )
        rows = [{"start": start, "perplexity": value} for start, value in values.items()]
        title = f"{self.name}: perplexity before training, by re-initialisation"
        add_table(folder, f"{self.name}-5-parts", title, rows)


class PostNormAbsorption(RecipeCallback):
    """Folds the post-norms of a sandwich model into the maps before them, at the start of a stage that heals the loss.

    After training the perplexity on the test set may be at most ``method.max_ppl_increase`` above that before.
    """

    class Config(BaseConfig):
        """How to absorb."""

        renamed = {"absorb": "method", "calib": "calibration"}

        method: AbsorbConfig = Field(AbsorbConfig(enabled=True), description="Constant, and the loss accepted.")
        calibration: CalibrationConfig = Field(CalibrationConfig(), description="Calibration text.")

    config: Config
    provides = frozenset({"absorbed norms", "new shapes"})

    def __init__(self, config: Config, *, name: str = "absorb") -> None:
        super().__init__(config, name=name)
        self._before = 0.0  # perplexity before absorption; 0 without a test set

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Absorb, unless the module holds this callback's plan already."""
        super().setup(trainer, pl_module, stage)
        module: Any = pl_module
        if stage == "fit" and not absorbed_by(module, self.name):
            self._before = self._perplexity(trainer, module)
            absorb_into(trainer, module, self.config.method, self.config.calibration, self.name)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what absorption and healing together cost.

        Raises:
            ValueError: the perplexity rose too much.
        """
        if self._before:
            check_absorption(self._before, self._perplexity(trainer, pl_module), self.config.method)

    def state_dict(self) -> dict[str, Any]:
        """Return the perplexity before absorption."""
        return {"before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the perplexity that the interrupted run measured."""
        self._before = state_dict["before"]

    def _perplexity(self, trainer: Trainer, module: Any) -> float:
        held_out = held_out_batches(trainer)
        with on_device(module.model, trainer.strategy.root_device):
            return perplexity(module.model, held_out) if held_out else 0.0


def add_shapes(folder: Path, name: str, report: PanguLightReport) -> None:
    """Add to the report the model's sizes before and after, and the dropped layers with their scores."""
    before, after = asdict(report.shape_before), asdict(report.shape_after)
    sizes = [{"size": axis.replace("_", " "), "before": before[axis], "after": after[axis]} for axis in before]
    add_table(folder, f"{name}-2-sizes", f"{name}: sizes", sizes)
    dropped = [{"layer": layer, "score": score} for layer, score in report.dropped_layers.items()]
    if dropped:
        add_table(folder, f"{name}-3-dropped", f"{name}: dropped layers", dropped)


def absorbed_by(module: Any, source: str) -> bool:
    """Return whether the callback of this name has absorbed the module's post-norms."""
    return find_plan(module.config.structure, "absorb", source) is not None


def absorb_into(
    trainer: Trainer, module: Any, config: AbsorbConfig, calibration: CalibrationConfig, source: str
) -> None:
    """Replace the module's model by the absorbed one and record the plan, unless that was done."""
    if absorbed_by(module, source):
        return
    batches, home = calibration_windows(trainer, calibration), next(module.model.parameters()).device
    with on_device(module.model, trainer.strategy.root_device):
        absorbed, _ = absorb_post_norms(
            module.model, batches, sigma=config.sigma, skip_first_token=config.skip_first_token
        )
    module.model = absorbed.to(home)
    module.restructure(AbsorbPlan(source=source))
