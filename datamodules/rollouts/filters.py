"""Which samples are worth training on: filters over rollouts, each of which counts what it leaves out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from pangu_modules.common.config import Config
from pangu_modules.llm.generation.records import Rollout

GRAM = 4
REPEATED = 3  # times at least: a short answer has so few 4-grams that one of them is a large share


class RolloutFilters(Config):
    """What is left out."""

    keep_truncated: bool = Field(False, description="Keep answers that the limit of new tokens has cut.")
    keep_duplicates: bool = Field(False, description="Keep further samples of a prompt with equal tokens.")
    min_tokens: NonNegativeInt = Field(1, description="Tokens an answer has at least.")
    max_tokens: PositiveInt | None = Field(None, description="Tokens an answer has at most; empty: no limit.")
    max_repeat_4gram: float = Field(
        0.3, ge=0, le=1, description="Share that one 4-gram may have of an answer's, if it comes three times or more."
    )
    verifier_filter: Literal["none", "correct", "teacher_can_solve"] = Field(
        "none", description="correct: right answers alone; teacher_can_solve: those to tasks that the teacher solved."
    )
    teacher_rollouts: str | None = Field(None, description="Folder of the teacher's samples, for teacher_can_solve.")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(f"max_tokens={self.max_tokens} is below min_tokens={self.min_tokens}: nothing is left")
        if (self.verifier_filter == "teacher_can_solve") != (self.teacher_rollouts is not None):
            raise ValueError(
                f"verifier_filter={self.verifier_filter!r} and teacher_rollouts={self.teacher_rollouts!r}: which tasks "
                "the teacher solves stands in its samples; give both or neither"
            )
        return self


def filtered(
    rollouts: Sequence[Rollout], config: RolloutFilters, solved: Collection[str] = ()
) -> tuple[list[Rollout], dict[str, int]]:
    """Return the samples that pass, and how many each filter has left out, by its name; the first one that does counts.

    Args:
        rollouts: the samples.
        config: the filters.
        solved: keys of the tasks that the teacher solves.

    Raises:
        ValueError: right answers are asked for, and nothing has judged any.
    """
    if config.verifier_filter == "correct" and not any(rollout.rewards for rollout in rollouts):
        raise ValueError("verifier_filter='correct': nothing has judged these samples; sample with data that verify")
    seen: set[Any] = set()
    filters: Mapping[str, Callable[[Rollout], bool]] = {
        "empty": lambda one: not one.text.strip() or not _written(one),
        "truncated": lambda one: one.finish_reason == "length" and not config.keep_truncated,
        "too short": lambda one: _written(one) < config.min_tokens,
        "too long": lambda one: config.max_tokens is not None and _written(one) > config.max_tokens,
        "repeating": lambda one: repeats(one.token_ids, config.max_repeat_4gram),
        "wrong": lambda one: config.verifier_filter == "correct" and not is_right(one),
        "not solved by the teacher": lambda one: (
            config.verifier_filter == "teacher_can_solve" and one.key not in solved
        ),
        "duplicate": lambda one: not config.keep_duplicates and _is_again(one, seen),
    }
    left_out = dict.fromkeys(filters, 0)
    kept = []
    for rollout in rollouts:
        reason = next((name for name, leaves_out in filters.items() if leaves_out(rollout)), None)
        if reason is None:
            kept.append(rollout)
        else:
            left_out[reason] += 1
    return kept, left_out


def repeats(token_ids: Sequence[int], limit: float) -> bool:
    """Whether one 4-gram is more than a share `limit` of all, and comes `REPEATED` times at least."""
    grams = Counter(tuple(token_ids[start : start + GRAM]) for start in range(len(token_ids) - GRAM + 1))
    if not grams:
        return False
    (_, most), *_ = grams.most_common(1)
    return most >= REPEATED and most > limit * grams.total()


def is_right(rollout: Rollout) -> bool:
    """Whether an answer was judged, and each part of its reward is whole."""
    return bool(rollout.rewards) and all(value >= 1 for value in rollout.rewards.values())


def has_labels(rollout: Rollout, only: Mapping[str, str]) -> bool:
    """Whether a sample has all of these labels."""
    return all(rollout.labels.get(name) == value for name, value in only.items())


def difficulties(rollouts: Sequence[Rollout]) -> list[float]:
    """Return how hard each sample's task is: the share of its samples that are wrong.

    Where nothing judged them it is the mean negative log-probability (nats) of the sample's tokens, and 0 without any.
    """
    judged = any(rollout.rewards for rollout in rollouts)
    right: dict[str, list[bool]] = {}
    for rollout in rollouts:
        right.setdefault(rollout.key, []).append(is_right(rollout))
    if judged:
        return [1 - sum(right[rollout.key]) / len(right[rollout.key]) for rollout in rollouts]
    return [-sum(one.logprobs or ()) / max(1, len(one.logprobs or ())) for one in rollouts]


def _written(rollout: Rollout) -> int:
    return sum(rollout.policy_mask) if rollout.policy_mask else len(rollout.token_ids)


def _is_again(rollout: Rollout, seen: set[Any]) -> bool:
    own = (rollout.prompt_ids, rollout.token_ids)
    again = own in seen
    seen.add(own)
    return again
