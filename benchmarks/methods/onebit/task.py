"""What an arm of the one-bit claims runs, and the numbers that it takes from the run or from another arm."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.harness.arms import Arm, ArmInput
from benchmarks.harness.quantities import Metric
from benchmarks.harness.recipe_arm import RecipeRun

RECIPE = "recipes.onebit_text"
CALLBACK = "binarize"
LAST, CURVE_STEP = 40, 10  # steps of the training loss that is compared, and of a point of the curves
CURVE = "curve_"
MEASURED = ("progressive_lr2", "ste_lr2", "continuous", "t_end_10")
"""Arms that also report losses around binarization, for the arms that take them."""

LOSS = Metric("test/loss", "test loss", "nats", digits=3, higher_is_better=False)
TRAIN_LOSS = Metric("train_loss", "training loss, last 40 steps", "nats", digits=3, higher_is_better=False)


@dataclass(frozen=True)
class OneBitRun(RecipeRun):
    """Runs a stage of the recipe; adds losses around binarization, the training loss, and points of its curve."""

    def __call__(self, seed: int, inputs: Mapping[str, ArmInput], folder: Path) -> dict[str, float]:
        """Train and test in `folder`."""
        numbers = super().__call__(seed, inputs, folder)
        for record in (folder / "run").glob(f"{CALLBACK}*.json"):
            numbers |= json.loads(record.read_text(encoding="utf-8"))["losses"]
        losses, validation = read_losses(folder / "run" / "metrics.csv")
        numbers |= {"train_loss": fmean(losses[-LAST:]), "val/loss": validation}
        for start in range(0, len(losses), CURVE_STEP):
            numbers[f"{CURVE}{start:04d}"] = fmean(losses[start : start + CURVE_STEP])
        return numbers


@dataclass(frozen=True)
class BestOf:
    """Takes the numbers of the arm with the lowest validation loss: each seed chooses a method's learning rate."""

    arms: tuple[str, ...]

    def __call__(self, seed: int, inputs: Mapping[str, ArmInput], folder: Path) -> dict[str, float]:
        """Read them."""
        best = min(self.arms, key=lambda name: inputs[name].values["val/loss"])
        return _without_times(inputs[best].values)


@dataclass(frozen=True)
class Taken:
    """Takes one of an arm's numbers as the test loss, e.g. that of its start."""

    arm: str
    key: str

    def __call__(self, seed: int, inputs: Mapping[str, ArmInput], folder: Path) -> dict[str, float]:
        """Read it."""
        return {LOSS.key: inputs[self.arm].values[self.key]}


def taken(name: str, description: str, arm: str, key: str) -> Arm:
    """Return the arm that is one number of another arm."""
    return Arm(name, description, Taken(arm, key), {"of": arm, "key": key}, needs=(arm,))


def read_losses(metrics: Path) -> tuple[list[float], float]:
    """Return the training loss of every step, and the last validation loss, from a run's ``metrics.csv``."""
    with metrics.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    training = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    validation = [float(row["val/loss"]) for row in rows if row.get("val/loss")]
    return training, validation[-1]


def _without_times(values: Mapping[str, float]) -> dict[str, float]:
    """Leave out the times: those of the arm that was taken are counted there."""
    return {name: value for name, value in values.items() if name not in ("seconds", "cpu_seconds")}
