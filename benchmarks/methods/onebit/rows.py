"""Rows of the table of the one-bit arms: full precision, conversions by one method, and the better of two rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.harness.arms import Arm
from benchmarks.harness.recipe_arm import recipe_arm
from benchmarks.methods.onebit.task import CALLBACK, MEASURED, RECIPE, BestOf, OneBitRun

BASE_STEPS, STEPS, INIT_STEPS = 3000, 250, 15
LR = 2e-3  # of what is compared with progressive_lr2
PAIR = {"lr1": 1e-3, "lr2": 2e-3}
FROM_SCRATCH = {"lr2": 2e-3, "lr4": 4e-3}
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
TEXT = {"sequence_length": 64, "val_share": 0.02, "test_share": 0.03, "eval_batch_size": 64}
SMALL_TEXT = {"source": "python_topics", "vocab_size": 300, "sequence_length": 32}
MINIATURE_STEPS, MINIATURE_INIT_STEPS = 12, 2
PLAIN = {"init": "none", "hard_tail": "none", "schedule_steps": 1.0, "scale_dtype": "float32"}
"""All methods run without stage 1 and without a hard tail, unless a row says otherwise."""


@dataclass(frozen=True)
class FullPrecision:
    """The model in full precision: pretrained from scratch, or trained on from another arm's weights."""

    name: str
    description: str
    steps: int
    batch_size: int = 8
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    start_from: str | None = None

    def arms(self, miniature: bool) -> tuple[Arm, ...]:
        """Return its arm."""
        steps = MINIATURE_STEPS if miniature else self.steps
        changes = training(steps, LR, miniature, self.batch_size)
        changes["module"]["optimizer"] |= self.optimizer
        run = OneBitRun(RECIPE, "base", changes, self.start_from)
        return (recipe_arm(self.name, self.description, run),)


@dataclass(frozen=True)
class Conversion:
    """The base, or a new model, trained with one method.

    Args:
        name: of the arm.
        description: one line for the tables.
        onebit: fields of `OneBitConfig` that differ from `PLAIN`; steps of stage 1 are taken from the training.
        lr: learning rate.
        start_from: arm whose weights are converted; None for a new model.
        seeds: how many seeds it runs on (None: all).
        callbacks: instead of the recipe's callback with `onebit`.
    """

    name: str
    description: str
    onebit: Mapping[str, Any] = field(default_factory=dict)
    lr: float = LR
    start_from: str | None = "base"
    seeds: int | None = None
    callbacks: Mapping[str, Any] | None = None

    def arms(self, miniature: bool) -> tuple[Arm, ...]:
        """Return its arm."""
        settings, steps = {**PLAIN, **self.onebit}, MINIATURE_STEPS if miniature else STEPS
        if settings["init"] == "learned":
            settings["init_steps"] = MINIATURE_INIT_STEPS if miniature else INIT_STEPS
            steps -= settings["init_steps"]
        changes = training(steps, self.lr, miniature)
        own = {CALLBACK: {"method": settings, "measure": self.name in MEASURED}}
        changes["callbacks"] = own if self.callbacks is None else dict(self.callbacks)
        run = OneBitRun(RECIPE, "binarize", changes, self.start_from)
        return (recipe_arm(self.name, self.description, run, self.seeds),)


@dataclass(frozen=True)
class Tuned:
    """A conversion at each of several learning rates, and the best of them by validation, which has the plain name."""

    conversion: Conversion
    rates: Mapping[str, float] = field(default_factory=lambda: PAIR)

    def arms(self, miniature: bool) -> tuple[Arm, ...]:
        """Return one arm for each learning rate, then the best."""
        name, description = self.conversion.name, self.conversion.description
        rows = [
            replace(self.conversion, name=f"{name}_{key}", description=f"{description}, lr {rate:g}", lr=rate)
            for key, rate in self.rates.items()
        ]
        tried = tuple(row.name for row in rows)
        best = Arm(name, f"{description}, better lr by validation", BestOf(tried), {"best of": tried}, needs=tried)
        return (*(arm for row in rows for arm in row.arms(miniature)), best)


def training(steps: int, lr: float, miniature: bool, batch_size: int = 8) -> dict[str, Any]:
    """Return the overrides of a training run of so many steps; validation follows the last one."""
    return {
        "module": {"model_args": MODEL, "optimizer": {"lr": lr, "warmup_share": min(0.5, 20 / steps)}},
        "data": {**TEXT, "batch_size": batch_size, **(SMALL_TEXT if miniature else {})},
        "trainer": {
            "max_steps": steps,
            "max_epochs": -1,
            "val_check_interval": steps,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
        },
    }
