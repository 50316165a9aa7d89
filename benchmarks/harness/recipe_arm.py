"""Arms that are recipes with overrides: one stage, trained and tested once per seed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.arms import Arm, ArmInput

if TYPE_CHECKING:
    from pangu_modules import Recipe

CHECKPOINT = Path("run", "checkpoints", "last.ckpt")
"""Where a finished recipe arm leaves its weights, below its folder."""


@dataclass(frozen=True)
class RecipeRun:
    """Trains one stage of a recipe; returns its test metrics, ``parameters`` and ``train_seconds``.

    Args:
        recipe: module that holds ``recipe``, e.g. ``recipes.scalenet_digits``.
        stage: the stage to take from it, or None for a recipe of one stage.
        changes: what `Recipe.derive` takes, as plain data; the seed is set for the run and for its data.
        start_from: arm whose last checkpoint training starts from, or None.
    """

    recipe: str
    stage: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    start_from: str | None = None

    def derived(self, seed: int) -> Recipe:
        """Return the recipe that runs with this seed."""
        recipe: Recipe = importlib.import_module(self.recipe).recipe
        if self.stage is not None:
            recipe = recipe.stage(self.stage)
        changes = {**self.changes, "data": {**self.changes.get("data", {}), "seed": seed}, "seed": seed}
        return recipe.derive(**changes)

    def __call__(self, seed: int, inputs: Mapping[str, ArmInput], folder: Path) -> dict[str, float]:
        """Train and test in `folder`."""
        start = inputs[self.start_from].folder / CHECKPOINT if self.start_from else None
        run = self.derived(seed).fit(run_dir=folder / "run", start_from=start, quiet=True)
        return {**run.metrics, "parameters": run.parameters, "train_seconds": run.seconds}


def recipe_arm(name: str, description: str, run: RecipeRun, seeds: int | None = None) -> Arm:
    """Return the arm of a `RecipeRun`; the whole resolved recipe is what its results depend on."""
    config = {"recipe": run.derived(seed=0).plain(), "start_from": run.start_from}
    needs = (run.start_from,) if run.start_from else ()
    return Arm(name, description, run, config=config, needs=needs, seeds=seeds)
