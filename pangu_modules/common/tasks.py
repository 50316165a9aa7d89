"""Task: one thing to ask a model, with what is needed to judge the answer; data only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Task:
    """One thing to ask a model.

    Attributes:
        key: identity within its data set, the same in every run.
        messages: the conversation to answer, each with ``role`` and ``content``.
        verifier: label of what judges the answer, see `pangu_modules.verification`; empty: nothing does.
        reference: what the verifier needs, as plain data (JSON).
        labels: what tables group by, e.g. ``{"task": "chain_sum", "level": "1"}``.
    """

    key: str
    messages: Sequence[Mapping[str, Any]]
    verifier: str = ""
    reference: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
