"""Rows of the table of MoGE's arms: models trained on text, and measurements of one size or two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.arms import Arm
from benchmarks.harness.recipe_arm import RecipeRun, recipe_arm
from benchmarks.methods.moge.task import ExpertTime, RoundTrip, Speculate, UniformRouters
from recipes.moge_text import MOGE

TEXT, UPCYCLED, DRAFTER = "recipes.moge_text", "recipes.moge_upcycle_smollm2", "recipes.drafter_smollm2"
STEPS, MINIATURE_STEPS = 1500, 10
ALPHA = 0.01
REPORTED_SEEDS = 1
TRIALS = {1: 4000, 16: 2000, 128: 1000, 1024: 300}
FEW_TRIALS = {1: 200, 16: 50, 128: 10, 1024: 3}
MINIATURE_MOGE = {"hidden_size": 32, "moe_intermediate_size": 16}
SMALL_LLAMA = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
}


@dataclass(frozen=True)
class Mixture:
    """The text recipe with another router, auxiliary loss or number of seeds."""

    name: str
    description: str
    router: Mapping[str, Any] = field(default_factory=dict)
    alpha: float = ALPHA
    seeds: int | None = None

    def arm(self, miniature: bool) -> Arm:
        """Return the arm; in miniature a narrow model."""
        small = MINIATURE_MOGE if miniature else {}
        changes = {
            "module": {"model_args": {**MOGE, **small, **self.router}},
            "callbacks": {"balance": {"method": {"coefficient": self.alpha}}},
            "trainer": trainer(miniature),
        }
        return recipe_arm(self.name, self.description, RecipeRun(TEXT, changes=changes), self.seeds)


@dataclass(frozen=True)
class SmallLlama:
    """The text recipe with a Llama of one layer, which drafts."""

    name: str
    description: str

    def arm(self, miniature: bool) -> Arm:
        """Return the arm; it is only reported."""
        changes = {
            "module": {"architecture": "llama", "model_args": SMALL_LLAMA},
            "callbacks": {"balance": None, "load": None},
            "trainer": trainer(miniature),
        }
        return recipe_arm(self.name, self.description, RecipeRun(TEXT, changes=changes), REPORTED_SEEDS)


@dataclass(frozen=True)
class Measurement:
    """An arm that trains nothing, and its smaller form where it has one."""

    real: Arm
    small: Arm | None = None

    def arm(self, miniature: bool) -> Arm:
        """Return the arm of this size."""
        return self.small if miniature and self.small is not None else self.real


def trainer(miniature: bool) -> dict[str, Any]:
    """Return the trainer's overrides: no validation and no checkpoint but the last."""
    steps, limits = (MINIATURE_STEPS, {"limit_test_batches": 2}) if miniature else (STEPS, {})
    settings = {"max_steps": steps, "val_check_interval": None, "limit_val_batches": 0}
    return {**settings, "enable_checkpointing": False, **limits}


def untrained(trials: Mapping[int, int]) -> Arm:
    """Return the arm that routes random scores."""
    return Arm("untrained", "random scores", UniformRouters(trials), {"trials": [*map(list, trials.items())]})


def checkpoint() -> Arm:
    """Return the arm that loads and saves a released checkpoint; it has one size."""
    return Arm("checkpoint", "released layout, loaded and saved", RoundTrip(), {"layers": 2})


def expert_time(run: ExpertTime) -> Arm:
    """Return the arm that times the experts of each device."""
    fields = ("devices", "tokens", "hidden_size", "intermediate_size", "repeats")
    config = {name: getattr(run, name) for name in fields}
    return Arm("expert_time", "each device's experts timed alone", run, config, needs=("topk", "moge"))


def speculation(name: str, description: str, run: Speculate) -> Arm:
    """Return the arm that decodes speculatively; it is only reported."""
    config = {key: getattr(run, key) for key in ("prompts", "prompt_tokens", "new_tokens", "drafted")}
    needs = tuple(arm for arm in (run.drafter, run.target) if arm)
    return Arm(name, description, run, config, needs, REPORTED_SEEDS)


def smollm2_upcycled(name: str, description: str, router: str) -> Arm:
    """Return the arm of SmolLM2 upcycled with a router; it is only reported."""
    plan = {"kind": "upcycle", "upcycle": {"router": router}}
    changes = {"module": {"structure": [plan]}, "trainer": {"enable_checkpointing": False}}
    return recipe_arm(name, description, RecipeRun(UPCYCLED, changes=changes), REPORTED_SEEDS)


def smollm2_drafter(name: str, description: str) -> Arm:
    """Return the arm that makes a drafter of SmolLM2's own layers; it is only reported."""
    changes = {"trainer": {"enable_checkpointing": False}, "callbacks": {"prune": {"progress_folder": None}}}
    return recipe_arm(name, description, RecipeRun(DRAFTER, changes=changes), REPORTED_SEEDS)
