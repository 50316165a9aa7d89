"""The arms of the post-training claims: curricula of fine-tuning, and what follows them."""

from __future__ import annotations

from typing import Any

from benchmarks.methods.posttrain.task import STUDENT, TEACHER, Row

STEPS = {"reason": 400, "fast": 500, "after": 200}
TOTAL = STEPS["reason"] + STEPS["fast"]
BATCH = 64
MIXED_SHARE = (STEPS["reason"] + 0.25 * STEPS["fast"]) / TOTAL


def tuning(steps: int, thinking_share: float, **data: Any) -> dict[str, Any]:
    """Return the changes of a stage of fine-tuning: each row is seen once."""
    return {
        "data": {"num_train": steps * BATCH, "thinking_share": thinking_share, **data},
        "trainer": {"max_steps": steps},
    }


def after(**data: Any) -> dict[str, Any]:
    """Return the changes that make of a stage of fine-tuning one of 200 steps in both modes."""
    return {**tuning(STEPS["after"], 0.5, **data), "module": {"optimizer": {"lr": 2e-3}}}


CURRICULA = (
    Row(TEACHER, "the teacher, 2400 steps in both modes", "teacher", teacher=None),
    Row("reason", "thinking, 400 steps", "reason", tuning(400, 1.0), 1, teacher=None),
    Row(STUDENT, "thinking, then fast with a quarter of thinking: the student", "fast", tuning(500, 0.25), 2, "reason"),
    Row("no_replay", "thinking, then fast alone", "fast", tuning(500, 0.0), 2, "reason", teacher=None),
    Row("second_alone", "the second stage alone, 500 steps", "fast", tuning(500, 0.25), 2, teacher=None),
    Row("fast_alone", "fast alone, 900 steps", "fast", tuning(TOTAL, 0.0), 2, teacher=None),
    Row("thinking_alone", "thinking alone, 900 steps", "fast", tuning(TOTAL, 1.0), 2, teacher=None),
    Row("mixed", "both modes mixed, 900 steps", "fast", tuning(TOTAL, MIXED_SHARE), 2, teacher=None),
    Row("fast_first", "fast, 500 steps", "fast", tuning(500, 0.0), 1, teacher=None),
    Row("reversed", "fast, then thinking", "fast", tuning(400, 1.0), 2, "fast_first", teacher=None),
)
"""Equal steps of 64 rows in all: 900, but for the parts of others. A row of thinking has six times the targets."""

TUNED_ON = (
    Row("more_sft", "more fine-tuning", "fast", after(), 3, STUDENT),
    Row("more_sft_wrong", "more fine-tuning, 40 % wrong references", "fast", after(wrong_share=0.4), 3, STUDENT),
)
ROWS = CURRICULA + TUNED_ON
