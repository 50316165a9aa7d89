"""TaskFile: the user's own tasks, one in each row of a file or dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from pydantic import Field

from datamodules.reasoning.tasks import TaskData
from datamodules.text.reading import check_text_source, download, located_rows
from datamodules.text.rows import BadRows, OnBad, checked_row, shown
from pangu_modules.common.tasks import Task


class TaskFile(TaskData):
    """Tasks with a question, a right answer and the label of a verifier.

    A question decides by its hash whether it is for training or for the test, so that it stays there when rows are
    added. A question that is there already is left out and counted (`removed`).

    Args:
        config: the configuration.

    Raises:
        ValueError: the source has a name that is no path and no hub id.
    """

    class Config(TaskData.Config):
        """Where the tasks come from, and what the fields of a row are."""

        source: str = Field(description="A .jsonl or .json file, a folder of .jsonl files, or a dataset of the hub.")
        prompt_field: str = Field("prompt", description="Field with the question: a text, or a list of messages.")
        answer_field: str = Field("answer", description="Field with the right answer, a text or a number.")
        verifier_field: str = Field("verifier", description="Field with the label of what judges the answer.")
        verifier: str = Field("math", description="The label of rows without one.")
        test_share: float = Field(0.1, ge=0, lt=1, description="Share of the questions for the test, about.")
        on_bad_row: OnBad = Field(
            "error", description="At a row that is no task: error stops, skip leaves it out and counts it."
        )

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        check_text_source(config.source)

    def source_names(self) -> list[str]:
        """Return the source."""
        return [self.config.source]

    def prepare_data(self) -> None:
        """Download a dataset of the hub."""
        download(self.config.source)

    def load(self) -> Mapping[str, Sequence[Task]]:
        """Read the tasks.

        Raises:
            FileNotFoundError: the source is not there.
            ValueError: a row is no task, and its place is in the message; or there is none for training.
        """
        tasks: dict[str, list[Task]] = {"train": [], "test": []}
        bad, seen, rows = BadRows(self.config.on_bad_row), set[str](), 0
        for where, row in located_rows(self.config.source, self.config.prompt_field):
            rows += 1
            try:
                task = self._task(row, where, rows - 1)
            except ValueError as error:
                bad.meet(str(error), error)
                continue
            question = str(task.messages)
            digest = hashlib.sha256(f"{self.config.seed}/{question}".encode()).digest()
            split = "test" if int.from_bytes(digest[:8], "big") < self.config.test_share * 2**64 else "train"
            if question in seen:
                self.removed[split] += 1
                continue
            seen.add(question)
            tasks[split].append(task)
        bad.report(self.config.source, rows)
        if not tasks["train"]:
            raise ValueError(f"{self.config.source}: none of {rows} rows is a task for training. {bad.first}".strip())
        if repeated := sum(self.removed.values()):
            rank_zero_warn(f"{self.config.source}: {repeated} of {rows} rows left out: their question is there already")
        return tasks

    def _task(self, row: Any, where: str, number: int) -> Task:
        config = self.config
        values = checked_row(row, config.prompt_field, where)
        question, answer = values[config.prompt_field], values.get(config.answer_field)
        if not isinstance(answer, str | int | float) or isinstance(answer, bool) or not str(answer).strip():
            raise ValueError(f"{where}: {config.answer_field!r} holds no right answer but {shown(answer)}")
        label = str(values.get(config.verifier_field) or config.verifier)
        task = Task(
            key=f"row {number}",
            messages=self.messages(question_of(question, f"{where}: {config.prompt_field!r}")),
            verifier=label,
            reference={"answer": str(answer)},
            labels={"verifier": label},
        )
        try:
            self.verification.check([task])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        return task


def question_of(value: Any, where: str) -> str | list[dict[str, Any]]:
    """Return a question's text, or its messages, of which the last one is the user's.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str) and value.strip():
        return value
    messages = list(value) if isinstance(value, list | tuple) else []
    if not messages or not all(
        isinstance(message, Mapping) and isinstance(message.get("content"), str) and message.get("role")
        for message in messages
    ):
        raise ValueError(f"{where} holds no question (a text, or messages with role and content) but {shown(value)}")
    if messages[-1]["role"] != "user":
        raise ValueError(f"{where} ends with a message of {messages[-1]['role']!r}: the last one must be the user's")
    return [dict(message) for message in messages]
