"""Score: what a verifier says of one answer, and what a verifier is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Score:
    """A verdict on one answer.

    Attributes:
        value: 0 for wrong to 1 for right.
        component: the part of a reward that it is, e.g. "answer".
        reason: why, for a person: "equal to 42", "no answer found", "TimeoutError: ...".
    """

    value: float
    component: str = "answer"
    reason: str = ""


class Verifier(Protocol):
    """Judges a completion's text."""

    def __call__(self, text: str, reference: Mapping[str, Any]) -> Score:
        """Return the score of a completion for the task's reference."""
        ...
