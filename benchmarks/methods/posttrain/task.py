"""What an arm of the post-training claims runs: a stage of the recipe on sums, with inputs from other arms."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.arms import Arm, ArmInput
from benchmarks.harness.quantities import Metric, SeedResults, TwoArms
from benchmarks.harness.recipe_arm import CHECKPOINT
from pangu_modules.engine.data_stages import DataStage

if TYPE_CHECKING:
    from pangu_modules import Recipe

RECIPE = "recipes.posttrain_tiny"
SEEDS_FROM = 100
"""Seeds of the prototype, from which the margins come, were small numbers; these are others."""
STREAMS = 20  # seeds of data of one seed of the claims
TEACHER, STUDENT = "teacher", "start"

ACC_FAST = Metric("test/accuracy_fast", "fast mode", "%", 100, 1, difference_unit="points")
ACC_THINKING = Metric("test/accuracy_thinking", "thinking mode", "%", 100, 1, difference_unit="points")
KL_FAST = Metric("test/kl_fast", "KL, fast", "nats", digits=3, higher_is_better=False)
KL_THINKING = Metric("test/kl_thinking", "KL, thinking", "nats", digits=4, higher_is_better=False)
WALL = Metric("wall_seconds", "time", "s", digits=1, higher_is_better=False)


@dataclass(frozen=True)
class KeptShare(TwoArms):
    """How much of the accuracy of `over` the arm still has, in percent; 0 where there was none."""

    @property
    def unit(self) -> str:
        """Percent."""
        return "%"

    def of(self, results: SeedResults) -> float:
        """Return the share in one seed, in percent."""
        before = results[self.over][self.metric.key]
        return 100 * results[self.arm][self.metric.key] / before if before else 0.0


@dataclass(frozen=True)
class Row:
    """One arm: a stage of the recipe, what is changed in it, and which arms it takes something from.

    Args:
        name: of the arm.
        description: one line for the tables.
        stage: of the recipe.
        changes: what `Recipe.derive` takes.
        stream: number of the seed of its data among those of a seed; arms with equal ones see the same prompts.
        start_from: arm whose weights it starts from.
        rollouts: arm whose samples it reads.
        scores: arm whose scores it reads.
        teacher: arm that samples are compared with, and that teaches where it is resident.
        makes_answers: whether making the samples is part of its work, and of its time.
        seeds: how many seeds it runs on (None: all).
    """

    name: str
    description: str
    stage: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    stream: int = 0
    start_from: str | None = None
    rollouts: str | None = None
    scores: str | None = None
    teacher: str | None = TEACHER
    makes_answers: bool = True
    seeds: int | None = None

    def arm(self, miniature: bool) -> Arm:
        """Return the arm."""
        run = StageRun(self, miniature)
        config = {"recipe": run.recipe(seed=0).plain(), "inputs": {**self.inputs()}, "stream": self.stream}
        needs = tuple(dict.fromkeys(name for name in self.inputs().values() if name is not None))
        return Arm(self.name, self.description, run, config=config, needs=needs, seeds=self.seeds)

    def inputs(self) -> dict[str, str | None]:
        """Return the arms that it needs, by what for."""
        return {
            "start_from": self.start_from,
            "rollouts": self.rollouts,
            "scores": self.scores,
            "teacher": self.teacher,
        }


@dataclass(frozen=True)
class StageRun:
    """Runs a row: trains and tests, or makes data; returns metrics and ``wall_seconds``.

    The time is that of the work itself without tests; of a student that was distilled from a cache, sampling and the
    teacher's pass are part of it.
    """

    row: Row
    miniature: bool = False

    def recipe(self, seed: int) -> Recipe:
        """Return the recipe that runs with this seed, without its inputs."""
        recipe: Recipe = importlib.import_module(RECIPE).recipe.stage(self.row.stage)
        number = SEEDS_FROM + seed
        recipe = recipe.derive(seed=number)
        stage = recipe.stages[""]
        if "answers" in stage.callbacks:
            recipe = recipe.derive(callbacks={"answers": self._answers()})
        recipe = recipe.derive(**self.row.changes)
        if "data" in stage.parts:
            recipe = recipe.derive(data={"seed": STREAMS * number + self.row.stream})
        return recipe.derive(**self._small(recipe)) if self.miniature else recipe

    def __call__(self, seed: int, inputs: Mapping[str, ArmInput], folder: Path) -> dict[str, float]:
        """Do it in `folder`."""
        row, recipe = self.row, self.recipe(seed)
        recipe = recipe.derive(**self._given(recipe, inputs))
        start = inputs[row.start_from].folder / CHECKPOINT if row.start_from else None
        before = (row.rollouts if row.makes_answers else None, row.scores)
        wall = sum(inputs[name].values["wall_seconds"] for name in before if name is not None)
        if isinstance(recipe.stages[""], DataStage):
            made = recipe.make(folder / "run", start_from=start, quiet=True)
            return {**made.metrics, "wall_seconds": made.seconds}
        run = recipe.fit(folder / "run", start_from=start, quiet=True)
        return {**run.metrics, "train_seconds": run.seconds, "wall_seconds": run.seconds + wall}

    def _given(self, recipe: Recipe, inputs: Mapping[str, ArmInput]) -> dict[str, Any]:
        """Return what other arms have left, as changes of the recipe."""
        row, stage = self.row, recipe.stages[""]
        data = {
            kind: str(inputs[name].folder / "run" / kind)
            for kind, name in (("rollouts", row.rollouts), ("scores", row.scores))
            if name is not None
        }
        changes: dict[str, Any] = dict(data) if stage.parts == ("module", "engine") else {"data": data} if data else {}
        if row.teacher is not None and stage.callbacks:
            teacher = str(inputs[row.teacher].folder / CHECKPOINT)
            asking = [name for name, each in stage.active_callbacks.items() if "teacher" in type(each).model_fields]
            changes["callbacks"] = {name: {"teacher": teacher} for name in asking}
        return changes

    def _answers(self) -> dict[str, Any]:
        return {"data_fields": {"num_test": 8 if self.miniature else 4000}, "limit": None}

    def _small(self, recipe: Recipe) -> dict[str, Any]:
        stage: Any = recipe.stages[""]
        small: dict[str, Any] = {}
        fields = type(stage.data).model_fields if "data" in stage.parts else {}
        if "num_tasks" in fields:
            small["data"] = {"num_train": 192, "num_tasks": 24, "num_test": 8}
        elif "filters" in fields:  # answers of models that know nothing
            filters = {"keep_truncated": True, "max_repeat_4gram": 1.0, "verifier_filter": "none"}
            small["data"] = {"batch_size": 4, "filters": filters}
        if stage.trainer:
            small["trainer"] = {"max_steps": 3}
        return small
