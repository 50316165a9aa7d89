"""The task of the one-bit claims: a small Llama pretrained on the King James Bible, converted by each method."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.harness.arms import Arm, ArmInput
from benchmarks.harness.quantities import Metric
from benchmarks.harness.recipe_arm import RecipeRun, recipe_arm

RECIPE = "recipes.onebit_text"
CALLBACK = "binarize"
BASE_STEPS, STEPS, INIT_STEPS = 3000, 250, 15
LAST, CURVE_STEP = 40, 10  # steps of the training loss that is compared, and of a point of the curves
CURVE = "curve_"
MODEL = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
TEXT = {"sequence_length": 64, "val_fraction": 0.02, "test_fraction": 0.03, "eval_batch_size": 64}
SMALL_TEXT = {"source": "python_topics", "vocab_size": 300, "sequence_length": 32}
MEASURED = ("progressive_lr2", "ste_lr2", "continuous", "t_end_10")
"""Arms that also report losses around binarization, for the arms that take them."""
PAIR = {"lr1": 1e-3, "lr2": 2e-3}
FROM_SCRATCH = {"lr2": 2e-3, "lr4": 4e-3}

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


@dataclass(frozen=True)
class Task:
    """Makes the arms; in miniature with few steps on little text."""

    miniature: bool

    def base(self) -> Arm:
        """Return the pretrained model, one for each seed."""
        steps = 12 if self.miniature else BASE_STEPS
        # 1024 tokens a step
        changes = self._changes(steps, 2e-3, batch_size=16, optimizer={"warmup_fraction": 0.05})
        return recipe_arm(
            "base", f"pretrained in full precision, {BASE_STEPS} steps", OneBitRun(RECIPE, "base", changes)
        )

    def continued(self, name: str, description: str, lr: float) -> Arm:
        """Return the base trained on in full precision."""
        run = OneBitRun(RECIPE, "base", self._changes(self.steps, lr), "base")
        return recipe_arm(name, description, run)

    def converted(
        self,
        name: str,
        description: str,
        lr: float,
        *,
        seeds: int | None = None,
        start_from: str | None = "base",
        callbacks: Mapping[str, Any] | None = None,
        **onebit: Any,
    ) -> Arm:
        """Return the base (or a new model) trained with one method; `onebit` changes the recipe's configuration.

        All methods run without stage 1 and without a hard tail, unless `onebit` says otherwise.
        """
        settings = {"init": "none", "hard_tail": "none", "schedule_steps": 1.0, "scale_dtype": "float32", **onebit}
        steps = self.steps
        if settings["init"] == "learned":
            settings["init_steps"] = 2 if self.miniature else INIT_STEPS
            steps -= settings["init_steps"]
        changes = self._changes(steps, lr)
        own = {CALLBACK: {"onebit": settings, "measure": name in MEASURED}}
        changes["callbacks"] = own if callbacks is None else dict(callbacks)
        return recipe_arm(name, description, OneBitRun(RECIPE, "binarize", changes, start_from), seeds)

    def tuned(self, name: str, description: str, rates: Mapping[str, float] = PAIR, **settings: Any) -> tuple[Arm, ...]:
        """Return one arm for each learning rate, and the best of them, which has the plain name."""
        tried = tuple(
            self.converted(f"{name}_{key}", f"{description}, lr {rate:g}", rate, **settings)
            for key, rate in rates.items()
        )
        names = tuple(arm.name for arm in tried)
        best = Arm(name, f"{description}, better lr by validation", BestOf(names), {"best of": names}, needs=names)
        return (*tried, replace(best, seeds=settings.get("seeds")))

    @property
    def steps(self) -> int:
        """Steps of the conversion."""
        return 12 if self.miniature else STEPS

    def _changes(
        self, steps: int, lr: float, batch_size: int = 8, optimizer: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        warmup = {"warmup_fraction": min(0.5, 20 / steps)}
        changes: dict[str, Any] = {
            "module": {"model_args": MODEL, "optimizer": {"lr": lr, **warmup, **(optimizer or {})}},
            "data": {**TEXT, "batch_size": batch_size, **(SMALL_TEXT if self.miniature else {})},
            "trainer": {
                "max_steps": steps,
                "max_epochs": -1,
                "val_check_interval": steps,
                "check_val_every_n_epoch": None,
                "log_every_n_steps": 1,
                "num_sanity_val_steps": 0,
            },
        }
        return changes


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
