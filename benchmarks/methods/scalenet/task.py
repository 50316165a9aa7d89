"""The task of ScaleNet's claims: one stage of the digits recipe, with what an arm changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.arms import Arm
from benchmarks.harness.recipe_arm import RecipeRun, recipe_arm

RECIPE = "recipes.scalenet_digits"
BASE_EPOCHS, EPOCHS = 45, 15
REPORTED_SEEDS = 3


@dataclass(frozen=True)
class Training:
    """A row of the table of arms: a stage of the recipe, trained anew or from another arm's weights.

    Args:
        name: of the arm.
        description: one line for the tables.
        stage: of the recipe: ``base``, ``expand`` or ``scratch``.
        module: fields of the module that differ from the recipe's.
        epochs: of training; one of them is warm-up.
        start_from: arm whose weights training starts from.
        seeds: how many seeds it runs on (None: all).
    """

    name: str
    description: str
    stage: str
    module: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = EPOCHS
    start_from: str | None = None
    seeds: int | None = None

    def arm(self, miniature: bool) -> Arm:
        """Return the arm; in miniature one epoch on 128 images."""
        epochs = 1 if miniature else self.epochs
        changes = {
            "module": {**self.module, "optimizer": {"warmup_share": min(0.5, 1 / epochs)}},
            "data": {"train_size": 128 if miniature else 2000},
            "trainer": {"max_epochs": epochs, "limit_val_batches": 0, "enable_checkpointing": False},
        }
        run = RecipeRun(RECIPE, self.stage, changes, self.start_from)
        return recipe_arm(self.name, self.description, run, self.seeds)


def expanded(name: str, description: str, **module: Any) -> Training:
    """Return the row of the base expanded with these fields of the module, on all seeds."""
    return Training(name, description, "expand", module, start_from="base")


def variant(name: str, description: str, **module: Any) -> Training:
    """Return the row of an expansion that is only reported, on fewer seeds."""
    return Training(name, description, "expand", module, start_from="base", seeds=REPORTED_SEEDS)


def added_parameters(width: int, blocks: int, rank: int) -> int:
    """Return what doubling adds: an adapter with biases on attention and MLP of every instance, norms of added ones."""
    adapter = 2 * width * rank + rank + width
    return 2 * (2 * blocks) * adapter + blocks * 4 * width
