"""Rows of the table of DWM's arms: what a run of the text recipe changes, and what is measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.arms import Arm
from benchmarks.methods.dwm.task import WeighedRun, weighed_arm
from datamodules import Domain
from recipes.dwm_text import DOMAINS, KJV, LLAMA

TEXT, SMOLLM2 = "recipes.dwm_text", "recipes.dwm_smollm2"
STEPS, WIDE_STEPS, ROUNDS = 800, 400, 10
WIDE = {"hidden_size": 256, "intermediate_size": 704}
REPORTED_SEEDS = 1
NOISE = ("shuffled", "random")
MIXTURE = ("prose", *NOISE)

CLEAN: dict[str, Any] = {
    "domains": {name: domain.derive(share=1.0 if name == "prose" else 0.0) for name, domain in DOMAINS.items()}
}
"""The recipe's data without its noise."""
PAIR: dict[str, Any] = {
    "domains": {"hard": Domain(source=KJV), "easy": Domain(source=KJV, corruption="records")},
    "target": ("hard", "easy"),
    "test": ("hard", "easy"),
}
"""A hard and an easy domain in equal shares, both useful."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A run of the text recipe: DWM, or a baseline in its place.

    Args:
        name: of the arm.
        description: one line for the tables.
        method: ``dwm``, a method of `BatchWeighting`, or ``influence``.
        fields: of that method's configuration.
        data: fields of the data that differ from the recipe's.
        wide: twice the width and half the steps.
        options: fields of `WeighedRun` that say what is taken from other arms and what is measured.
        seeds: how many seeds it runs on (None: all).
    """

    name: str
    description: str
    method: str = "dwm"
    fields: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    wide: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: int | None = None

    def arm(self, miniature: bool) -> Arm:
        """Return the arm; in miniature a narrow model and 10 steps."""
        changes = self._changes(miniature)
        weighing: dict[str, Any] = {}
        if self.method == "dwm":
            changes["callbacks"]["dwm"] |= self.fields
        elif self.method == "influence":
            weighing["influence"] = {"num_rounds": ROUNDS, **self.fields}
        else:
            weighing["weighting"] = {"method": {"kind": self.method, **self.fields}, "num_rounds": ROUNDS}
        return weighed_arm(
            self.name, self.description, WeighedRun(TEXT, changes, **weighing, **self.options), self.seeds
        )

    def _changes(self, miniature: bool) -> dict[str, Any]:
        """Return the overrides: data, width, and nothing that only costs time."""
        steps, sizes = (WIDE_STEPS, WIDE) if self.wide else (STEPS, {})
        data, dwm = dict(self.data), {}
        if miniature:
            steps, sizes = 10, {"hidden_size": 32 if self.wide else 16, "intermediate_size": 32}
            data, dwm = {**data, "size": 400}, {"dwm_steps": 2}
        return {
            "module": {"model_args": {**LLAMA, **sizes}},
            "data": data,
            "callbacks": {"dwm": dwm},
            "trainer": {
                "max_steps": steps,
                "val_check_interval": max(1, steps // ROUNDS),
                "num_sanity_val_steps": 0,
                "enable_checkpointing": False,
            },
        }


def mixed(name: str, description: str, method: str = "dwm", *, wide: bool = False, **options: Any) -> Text:
    """Return the row of a run on the recipe's mixture of prose and noise, on all seeds; the noise's weight counts."""
    return Text(name=name, description=description, method=method, wide=wide, options={"noise": NOISE, **options})


def reported(name: str, description: str, weighing: str = "dwm", **fields: Any) -> Text:
    """Return the row of a run on the mixture that is only reported, with these fields of its method."""
    return Text(
        name=name,
        description=description,
        method=weighing,
        fields=fields,
        options={"noise": NOISE},
        seeds=REPORTED_SEEDS,
    )


@dataclass(frozen=True)
class SmolLM2:
    """A run of the SmolLM2 recipe: with its DWM, or with the weighting given. It has no miniature."""

    name: str
    description: str
    weighting: Mapping[str, Any] | None = None

    def arm(self) -> Arm:
        """Return the arm."""
        changes = {"trainer": {"limit_val_batches": 0, "enable_checkpointing": False}}
        run = WeighedRun(SMOLLM2, changes, self.weighting, noise=("shuffled", "cipher"))
        return weighed_arm(self.name, self.description, run)
