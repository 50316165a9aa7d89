"""What to evaluate a language model on, as data."""

from __future__ import annotations

from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from pangu_modules.common.config import Config


class EvaluationConfig(Config):
    """Tasks, and how much of them.

    Raises:
        ValueError: no task is named.
    """

    tasks: tuple[str, ...] = Field(
        min_length=1, description="Tasks, groups or tags, comma-separated; * stands for any letters: arc_easy,mmlu_*."
    )
    limit: PositiveInt | None = Field(None, description="Samples of each task; empty: all.")
    num_fewshot: NonNegativeInt | None = Field(
        None, description="Examples before each question; empty: the task's own."
    )
    batch_size: PositiveInt = Field(8, description="Sequences at once.")
    include_path: str | None = Field(
        None, description="Folder of your own tasks (YAML); Python files that they name are run."
    )

    @field_validator("tasks", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Take ``a,b`` for ``(a, b)``, as the command line gives it."""
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value
