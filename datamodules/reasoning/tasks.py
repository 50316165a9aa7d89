"""TaskData: what datamodules of tasks share - two splits of tasks, their verification, and a hash of them all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn

from pydantic import Field

from datamodules.base import DataModule
from pangu_modules.common.tasks import Task
from pangu_modules.verification.routing import Verification
from pangu_modules.verification.scores import Score

Split = Literal["train", "test"]


class TaskData(DataModule):
    """Tasks to generate answers for, and to judge them; it has no training batches of its own.

    A subclass returns its tasks in `load()`.

    Args:
        config: the configuration.
    """

    class Config(DataModule.Config):
        """How the question is put, how answers are judged, and which tasks are expected."""

        instruction: str = Field(
            "End with a line 'Answer: ' and the final answer alone.",
            description="Text below each question: where the answer is looked for, see pangu_modules.verification.",
        )
        system_prompt: str = Field("", description="The conversation's system message; empty: none.")
        verification: Verification.Config = Field(Verification.Config(), description="How answers are judged.")
        expected_hash: str = Field(
            "",
            description="First characters of the tasks' hash, as `fingerprint()` returns it; other tasks are then "
            "refused; empty: not checked.",
        )

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.verification: Verification = config.verification.build()
        self.removed: dict[str, int] = {"train": 0, "test": 0}
        """Tasks left out of each split because their question was there already; known after `setup()`."""
        self._tasks: Mapping[str, Sequence[Task]] | None = None

    def load(self) -> Mapping[str, Sequence[Task]]:
        """Return the tasks of the splits "train" and "test", checked; no question is twice among them."""
        raise TypeError(f"{type(self).__name__} does not define load()")

    def setup(self, stage: str | None = None) -> None:
        """Load and check the tasks; once, whatever the stage.

        Raises:
            ValueError: they cannot be loaded or judged, or are others than `expected_hash` says.
        """
        if self._tasks is not None:
            return
        tasks = self.load()
        found, expected = hash_of(tasks), self.config.expected_hash
        if not found.startswith(expected):
            raise ValueError(
                f"expected_hash={expected!r}: the tasks are others, their hash is {found!r}. Their source, its version "
                "or a setting has changed: restore it, or write the new hash to go on with other tasks than before"
            )
        self._tasks = tasks

    def tasks(self, split: Split) -> Sequence[Task]:
        """Return the tasks of a split, in a fixed order."""
        self.setup()
        assert self._tasks is not None
        if split not in self._tasks:
            raise ValueError(f"split={split!r}: tasks are in {' and '.join(map(repr, self._tasks))}")
        return self._tasks[split]

    def verify(self, task: Task, text: str) -> Score | None:
        """Return the score of a completion, or None for one that is to be dropped; see `Verification.judge`."""
        return self.verification.judge(task, text)

    def fingerprint(self) -> str:
        """Return the hash of all tasks, SHA-256 in hexadecimal: equal exactly if tasks, splits and order are."""
        return hash_of({"train": self.tasks("train"), "test": self.tasks("test")})

    def messages(self, question: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the conversation that asks a question, with the configuration's system message and instruction.

        Args:
            question: its text, or messages of which the last one asks.
        """
        asked = [{"role": "user", "content": question}] if isinstance(question, str) else [dict(m) for m in question]
        if self.config.instruction:
            asked[-1]["content"] = f"{asked[-1]['content']}\n\n{self.config.instruction}"
        if self.config.system_prompt:
            asked.insert(0, {"role": "system", "content": self.config.system_prompt})
        return asked

    def train_dataloader(self) -> NoReturn:
        """Refuse: tasks become training data when answers are generated for them."""
        raise ValueError(
            f"{type(self).__name__} has tasks to answer, and no batches to train on: generate and judge answers in a "
            "stage of kind 'generate', and train on what it writes"
        )

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def hash_of(tasks: Mapping[str, Sequence[Task]]) -> str:
    """Return the SHA-256 of tasks by split, in hexadecimal."""
    plain = {
        split: [[task.key, list(task.messages), task.verifier, task.reference, task.labels] for task in tasks[split]]
        for split in ("train", "test")
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
