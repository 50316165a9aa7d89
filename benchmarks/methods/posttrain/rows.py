"""The arms of the post-training claims: curricula of fine-tuning, and what follows them."""

from __future__ import annotations

from typing import Any

from benchmarks.methods.posttrain.task import STUDENT, TEACHER, Row
from callbacks import OnlineDistillation
from datamodules import RolloutData
from recipes.posttrain_tiny import TEACHER as TEACHERS_SIZES

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

FULL = {"top_k": 18, "precision": "float32"}
OF_TEACHER = {"model_args": TEACHERS_SIZES}
TOLD = {"answers": "references"}
IN_ONE_STYLE = {**TOLD, "data": {"style": "left_to_right"}}


ONLINE = OnlineDistillation.Config(top_k=8, generation={"temperature": 1.0, "max_new_tokens": 32, "batch_size": BATCH})
RIGHT = {"filters": {"verifier_filter": "correct"}}
HALF = {"trainer": {"max_steps": STEPS["after"] // 2}}
MENDING = {"data": {"corrected_share": 0.5}}
UNTRAINED = {"trainer": {"max_steps": 1}, "module": {"optimizer": {"lr": 1e-12}}}


def made(name: str, description: str, model: str, changes: dict[str, Any] | None = None, **others: Any) -> Row:
    """Return the row of answers to the prompts of a seed, which are the same for all of them."""
    return Row(name, description, "generate", changes or {}, 4, model, teacher=None, **others)


def scored(name: str, rollouts: str, changes: dict[str, Any] | None = None, **others: Any) -> Row:
    """Return the row of the teacher's scores of an arm's answers."""
    model = others.pop("model", TEACHER)
    text = f"the teacher's scores of {rollouts}"
    return Row(name, text, "score", changes or {}, 0, model, rollouts, teacher=None, **others)


def distilled(name: str, description: str, rollouts: str, scores: str, **others: Any) -> Row:
    """Return the row of a student distilled from scores."""
    changes = others.pop("changes", {})
    start = others.pop("start_from", STUDENT)
    return Row(name, description, "distill", changes, 0, start, rollouts, scores, **others)


def loss(**method: Any) -> dict[str, Any]:
    """Return the changes of a distillation with another loss."""
    return {"callbacks": {"distill": {"method": method}}}


def answered(name: str, description: str, rollouts: str, callback: Any = None, **others: Any) -> Row:
    """Return the row of a student trained on answers as they are, or on their prompts alone."""
    data = RolloutData.Config(batch_size=BATCH, **others.pop("data", {}))
    changes = {"data": data, "callbacks": {"distill": callback}}
    return Row(name, description, "distill", changes, 0, STUDENT, rollouts, **others)


ANSWERS = (
    made("samples", "the student's own answers", STUDENT),
    made("cold_samples", "its own answers at temperature 0.3", STUDENT, {"engine": {"temperature": 0.3}}, seeds=1),
    made("own_references", "references in random order, as it was trained on", STUDENT, TOLD),
    made("style_references", "references in one style, from left to right", STUDENT, IN_ONE_STYLE),
    made("teacher_samples", "the teacher's answers", TEACHER, {"module": OF_TEACHER}),
    scored("scores", "samples"),
    scored("full_scores", "samples", FULL),
    scored("one_score", "samples", {"top_k": 1}),
    scored("cold_scores", "cold_samples", seeds=1),
    scored("own_scores", "own_references"),
    scored("style_scores", "style_references"),
)
DISTILLED = (
    distilled("on_policy", "on-policy, k = 8 and the tail", "samples", "scores"),
    distilled("on_policy_full", "on-policy, all 18 tokens", "samples", "full_scores"),
    distilled("on_policy_one", "on-policy, k = 1 and the tail", "samples", "one_score"),
    distilled("reverse", "on-policy, reverse KL", "samples", "scores", changes=loss(divergence="reverse_kl")),
    distilled("jsd", "on-policy, JSD", "samples", "scores", changes=loss(divergence="jsd")),
    distilled("cold", "on-policy, samples at temperature 0.3", "cold_samples", "cold_scores", seeds=1),
    distilled("off_policy", "off-policy, references as it was trained on", "own_references", "own_scores"),
    distilled("off_policy_style", "off-policy, references in one style", "style_references", "style_scores"),
    answered("online", "online, teacher resident", "samples", ONLINE, makes_answers=False),
    answered("sequence_kd", "fine-tuning on the teacher's answers", "teacher_samples"),
    answered("rejection", "fine-tuning on its own right answers", "samples", data=RIGHT),
    # Two rounds of half the steps each.
    distilled("round_1", "on-policy, 100 steps", "samples", "scores", changes=HALF),
    made("samples_2", "answers after the first round", "round_1", {"seed": 1000}),
    scored("scores_2", "samples_2"),
    distilled("rounds_2", "on-policy, two rounds", "samples_2", "scores_2", changes=HALF, start_from="round_1"),
)
CORRECTING = (
    Row("correcting", "a teacher that marks and mends its errors", "teacher", MENDING, teacher=None, seeds=1),
    Row("correcting_start", "the student beside it", "fast", UNTRAINED, 3, STUDENT, teacher="correcting", seeds=1),
    scored("correcting_scores", "samples", model="correcting", seeds=1),
    distilled(
        "correcting_on_policy", "on-policy from it", "samples", "correcting_scores", teacher="correcting", seeds=1
    ),
    answered(
        "correcting_online", "online from it", "samples", ONLINE, makes_answers=False, teacher="correcting", seeds=1
    ),
)
ROWS = CURRICULA + TUNED_ON + ANSWERS + DISTILLED + CORRECTING
