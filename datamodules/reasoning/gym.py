"""ReasoningTasks: tasks of reasoning-gym by name and level, of disjoint seeds for training and test."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from datamodules.reasoning.tasks import TaskData
from pangu_modules.common.names import nearest
from pangu_modules.common.tasks import Task
from pangu_modules.verification.gym_answers import dataset_of, prepare

LEVELS: tuple[int, ...] = (0, 1, 2)
DEFAULT = dict.fromkeys(("chain_sum", "basic_arithmetic", "leg_counting", "letter_counting", "spell_backward"), LEVELS)
TRIES = 20  # items drawn at most for each one wanted, before a level counts as exhausted


class ReasoningTasks(TaskData):
    """Tasks that reasoning-gym generates, and judges by its own rules.

    Test questions are drawn first, and no training question equals one of them or another training question. Splits
    take the tasks' names and levels in turn, so that a part of one is balanced, too.

    Args:
        config: the configuration.
    """

    class Config(TaskData.Config):
        """Which tasks, and how many."""

        tasks: dict[str, tuple[NonNegativeInt, ...]] = Field(
            DEFAULT,
            description="Names of reasoning-gym's generators, and the levels of each: 0 is the easiest of its "
            "curriculum; of a generator without one it is the default setting.",
        )
        arguments: dict[str, Any] = Field(
            {}, description="By a generator's name: arguments of its configuration, in place of the levels' values."
        )
        num_train: PositiveInt = Field(1000, description="Tasks for training, of all names and levels together.")
        num_test: PositiveInt = Field(100, description="Tasks for the test, of all names and levels together.")

        @model_validator(mode="after")
        def _check_tasks(self) -> Self:
            if not self.tasks or not all(self.tasks.values()):
                raise ValueError("tasks: name at least one generator, and at least one level of each")
            for name, levels in self.tasks.items():
                if len(set(levels)) < len(levels):
                    raise ValueError(f"tasks: {name!r} has a level twice in {list(levels)}")
            for name, values in self.arguments.items():
                if name not in self.tasks:
                    raise ValueError(f"arguments: no generator {name!r} in tasks ({', '.join(self.tasks)})")
                if not isinstance(values, Mapping):
                    raise ValueError(f"arguments: {name!r} wants names and values of its settings, got {values!r}")
            return self

    config: Config

    def load(self) -> Mapping[str, Sequence[Task]]:
        """Generate the tasks.

        Raises:
            ImportError: reasoning-gym is not installed.
            ValueError: it has no such generator, level or argument, or too few different questions.
        """
        prepare()
        config, seen = self.config, set[str]()
        generators = [(name, level) for name, levels in config.tasks.items() for level in levels]
        arguments = {each: self._arguments(*each) for each in generators}
        tasks = {}
        for split, num in (("test", config.num_test), ("train", config.num_train)):
            shares = [num // len(generators) + (i < num % len(generators)) for i in range(len(generators))]
            drawn = [
                self._draw(split, each, arguments[each], share, seen)
                for each, share in zip(generators, shares, strict=True)
            ]
            tasks[split] = [column[row] for row in range(max(shares)) for column in drawn if row < len(column)]
        if any(self.removed.values()):
            rank_zero_info(
                f"ReasoningTasks: {self.removed['train']} items for training and {self.removed['test']} for the test "
                "repeated a question and were replaced by others"
            )
        self.verification.check(task for split in tasks.values() for task in split)
        return tasks

    def _arguments(self, name: str, level: int) -> dict[str, Any]:
        """Return the arguments of a generator at a level, but for seed and size."""
        given = dict(self.config.arguments.get(name, {}))
        try:
            arguments = {**level_arguments(name, level, given), **given}
            dataset_of(name, json.dumps({**arguments, "seed": 0, "size": TRIES}, sort_keys=True))
        except (AssertionError, TypeError) as error:  # what the generators' own checks raise
            raise ValueError(f"tasks: {name!r} at level {level} with arguments {given}: {error}") from error
        return arguments

    def _draw(
        self, split: str, generator: tuple[str, int], arguments: Mapping[str, Any], num: int, seen: set[str]
    ) -> list[Task]:
        name, level = generator
        draws = TRIES * num
        arguments = {**arguments, "seed": seed_of(self.config.seed, split, name, level), "size": max(draws, 1)}
        tasks: list[Task] = []
        for index, question, answer in items(name, arguments, draws):
            if len(tasks) == num:
                break
            if question in seen:
                self.removed[split] += 1
                continue
            seen.add(question)
            reference = {"task": name, "arguments": arguments, "index": index, "answer": answer}
            labels = {"task": name, "level": str(level)}
            key = f"{split}/{name}/{level}/{index}"
            tasks.append(Task(key, self.messages(question), "reasoning_gym", reference, labels))
        if len(tasks) < num:
            raise ValueError(
                f"tasks: {name!r} at level {level} has only {len(tasks)} new questions for {split} in {draws} "
                f"draws, {num} are wanted: lower num_{split}, or take a higher level or more names"
            )
        return tasks


def items(name: str, arguments: Mapping[str, Any], num: int) -> Iterator[tuple[int, str, str]]:
    """Yield index, question and answer of a generator's first items."""
    dataset = dataset_of(name, json.dumps(arguments, sort_keys=True))
    for index in range(num):
        entry = dataset[index]
        yield index, str(entry["question"]), str(entry["answer"])


def level_arguments(name: str, level: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a generator's curriculum sets at a level, as plain data.

    Args:
        name: the generator's.
        level: 0 is the easiest.
        given: settings that the curriculum does not decide.

    Raises:
        ValueError: there is no such generator or level.
    """
    from reasoning_gym.factory import DATASETS, create_curriculum, has_curriculum

    if name not in DATASETS:
        raise ValueError(
            f"tasks: reasoning-gym has no generator {name!r}.{nearest(name, DATASETS)} Known: "
            f"{', '.join(sorted(DATASETS))}"
        )
    if not has_curriculum(name):
        if level > 0:
            raise ValueError(f"tasks: {name!r} has no levels: write 0 for its default setting, and use `arguments`")
        return {}
    curriculum = create_curriculum(name)
    highest = max((len(attribute.levels) for attribute in curriculum.attributes.values()), default=1) - 1
    if level > highest:
        raise ValueError(f"tasks: {name!r} has the levels 0 to {highest}, got {level}")
    curriculum.set_global_level(level)
    settings = curriculum.generate_configuration(defaults=dict(given))
    fields = [
        getattr(attribute, kind)
        for attribute in curriculum.attributes.values()
        for kind in ("field_name", "lower_field_name", "upper_field_name")
        if hasattr(attribute, kind)
    ]
    return {field: getattr(settings, field) for field in fields}


def seed_of(seed: int, split: str, name: str, level: int) -> int:
    """Return a generator's seed. Item i of seed s is item i - 1 of s + 1, so nearby seeds would share their items."""
    digest = hashlib.sha256(f"{seed}/{split}/{name}/{level}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
