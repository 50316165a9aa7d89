"""Rounds of offline on-policy distillation: sample from the newest student, score, distill, and again."""

from __future__ import annotations

from typing import Any


def distillation_rounds(
    *, generate: Any, score: Any, distill: Any, start_from: str, rounds: int = 1
) -> dict[str, Any]:
    """Return a recipe's stages by name: ``generate``, ``score``, ``distill``, then ``generate_2``, and so on.

    Each round samples from the student that the one before it has left, with another seed, and trains it further.

    Args:
        generate: a `GenerateStage`.
        score: a `ScoreStage` of the teacher.
        distill: the `Stage` that trains on its scores.
        start_from: name of the stage that leaves the first student.
        rounds: how often.

    Raises:
        ValueError: there is no round.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: there is at least one")
    stages: dict[str, Any] = {}
    student = start_from
    for number in range(rounds):
        ending = f"_{number + 1}" if number else ""
        seeds = {"seed": generate.seed + number}
        stages[f"generate{ending}"] = generate.derive(start_from=student, **seeds)
        stages[f"score{ending}"] = score.derive(data_from=f"generate{ending}")
        stages[f"distill{ending}"] = distill.derive(start_from=student, data_from=f"score{ending}")
        student = f"distill{ending}"
    return stages
