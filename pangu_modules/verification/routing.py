"""Verification: each task's answer to the verifier that its label names, in a worker, with a deadline and a policy."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field, PositiveFloat

from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.common.config import Configurable, caller_only
from pangu_modules.common.names import nearest
from pangu_modules.common.registry import TARGETS
from pangu_modules.common.tasks import Task
from pangu_modules.verification.answers import after_thinking
from pangu_modules.verification.pool import WORKERS, LoadError, WorkerError
from pangu_modules.verification.scores import Score

COUNTING = threading.Lock()
os.register_at_fork(before=COUNTING.acquire, after_in_parent=COUNTING.release, after_in_child=COUNTING.release)
NEEDS: Mapping[str, tuple[str, ...]] = {
    "math": ("answer",),
    "reasoning_gym": ("task", "arguments", "index", "answer"),
}
"""What the verifiers of this library need of a task's reference."""


class Verification(Configurable):
    """Judges answers; safe to call from any thread and any process.

    Args:
        config: the configuration.
    """

    class Config(BaseConfig):
        """Deadline, policy, and the user's own verifiers."""

        deadline: PositiveFloat = Field(5.0, description="Seconds that judging one answer may take.")
        on_error: Literal["wrong", "drop"] = Field(
            "wrong",
            description="An answer whose verifier fails or misses the deadline: wrong (score 0), or drop (no score).",
        )
        thinking: tuple[tuple[str, str], ...] = Field(
            (("<think>", "</think>"), ("[unused16]", "[unused17]")),
            description="Marks around thoughts, which are not searched for answers; the second pair is openPangu's.",
        )
        verifiers: dict[str, str] = Field(
            {},
            description="Your own: label to 'module:function', a function (text, reference) -> Score, run in a worker.",
            json_schema_extra=caller_only({}),
        )

    config: Config

    def __init__(self, config: Config) -> None:
        self.config = config
        self.targets = {**TARGETS["verifier"], **config.verifiers}
        self.counts: Counter[str] = Counter()
        """Answers judged so far: ``right``, ``wrong``, ``unfinished`` (inside a thought), ``failed`` (see on_error)."""
        self.first_failure = ""
        """Why the first failed one failed."""

    def check(self, tasks: Iterable[Task]) -> None:
        """Refuse tasks that could not be judged, before anything is generated for them.

        Raises:
            ValueError: a label is unknown, its verifier cannot be loaded, or a reference lacks what the verifier needs
                or cannot be read; it names the task.
        """
        loaded, tried = set[str](), set[str]()
        for task in tasks:
            target = self._target(task)
            if target not in loaded:
                _load(target, task)
                loaded.add(target)
            if task.verifier in self.config.verifiers:
                continue
            _check_reference(task)
            if task.verifier == "math":
                self._try(task, target, f"<answer>{task.reference['answer']}</answer>", least=1)
            elif task.verifier == "reasoning_gym" and (items := str(task.reference["arguments"])) not in tried:
                self._try(task, target, "", least=0)  # one of each kind: is it made again as it was?
                tried.add(items)

    def judge(self, task: Task, text: str) -> Score | None:
        """Return the score of a completion, or None for one that is to be dropped (`on_error`).

        Raises:
            ValueError: the task's label is unknown, or its verifier cannot be loaded.
        """
        target = self._target(task)
        answer = after_thinking(text, self.config.thinking)
        if answer is None:
            return self._counted("unfinished", Score(0.0, reason="the thought does not end"))
        try:
            score = Score(**WORKERS.judge(target, answer, task.reference, self.config.deadline))
            if not 0 <= score.value <= 1:  # NaN is not, either
                raise WorkerError(f"{score.component} has the score {score.value}, which is not from 0 to 1")
        except LoadError as error:
            raise _not_loaded(task, error) from error
        except WorkerError as error:
            self.first_failure = self.first_failure or f"task {task.key!r}: {error}"
            wrong = self.config.on_error == "wrong"
            return self._counted("failed", Score(0.0, reason=str(error)) if wrong else None)
        return self._counted("right" if score.value >= 1 else "wrong", score)

    def _target(self, task: Task) -> str:
        if task.verifier not in self.targets:
            raise ValueError(
                f"task {task.key!r}: unknown verifier {task.verifier!r}.{nearest(task.verifier, self.targets)} "
                f"Known: {', '.join(self.targets)}; your own go into verification.verifiers"
            )
        return self.targets[task.verifier]

    def _try(self, task: Task, target: str, text: str, least: float) -> None:
        """Refuse a reference on which the verifier fails, or where the text has not at least so high a score."""
        why = "it does not equal itself"
        try:
            if WORKERS.judge(target, text, task.reference, self.config.deadline)["value"] >= least:
                return
        except WorkerError as error:
            why = str(error)
        raise ValueError(
            f"task {task.key!r}: the verifier {task.verifier!r} cannot use answer={task.reference['answer']!r}: {why}"
        )

    def _counted(self, outcome: str, score: Score | None) -> Score | None:
        with COUNTING:
            self.counts[outcome] += 1
        return score


def _check_reference(task: Task) -> None:
    for name in NEEDS.get(task.verifier, ()):
        if str(task.reference.get(name, "")).strip() == "":
            raise ValueError(
                f"task {task.key!r}: the verifier {task.verifier!r} needs {name!r} in the reference, and there is "
                "none: give it, or leave the task out"
            )


def _load(target: str, task: Task) -> None:
    try:
        WORKERS.load(target)
    except LoadError as error:
        raise _not_loaded(task, error) from error


def _not_loaded(task: Task, error: LoadError) -> ValueError:
    return ValueError(f"task {task.key!r}: the verifier {task.verifier!r} cannot be loaded: {error}")
