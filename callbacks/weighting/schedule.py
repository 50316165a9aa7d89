"""The rounds of DWM: which round an optimizer step lies in, and how many updates are due there. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from pangu_modules.common.config import Config


class RoundSchedule(Config):
    """When the weighting model learns and when it is frozen (arXiv:2507.16178: alternate training in five rounds)."""

    renamed = {
        "n_stages": "num_rounds",
        "warmup_stages": "warmup_rounds",
        "freeze_after_stage": "freeze_after_round",
    }

    num_rounds: PositiveInt = Field(5, description="Rounds of equal length that training is cut into.")
    warmup_rounds: NonNegativeInt = Field(
        1, description="First rounds with uniform weights; num_rounds: uniform throughout."
    )
    mode: Literal["staged", "online"] = Field(
        "staged",
        description="'staged': updates at the start of each round, then frozen; 'online': one update every dwm_every "
        "optimizer steps.",
    )
    dwm_steps: PositiveInt = Field(200, description="Updates of the weighting model in each round; staged only.")
    dwm_every: PositiveInt = Field(10, description="Optimizer steps from one update to the next; online only.")
    lm_in_phase_a: Literal["virtual", "real"] = Field(
        "virtual",
        description="What the trained model does during a round's updates; staged only. 'virtual': it waits, the "
        "updates draw batches of their own; 'real': it trains on, one update per training batch.",
    )
    freeze_after_round: NonNegativeInt | None = Field(
        None, description="Last round with updates (from 0), e.g. 1 learns in one round alone; empty: never freeze."
    )

    @model_validator(mode="after")
    def _check_rounds(self) -> Self:
        if self.warmup_rounds > self.num_rounds:
            raise ValueError(f"warmup_rounds={self.warmup_rounds} is more than num_rounds={self.num_rounds}: lower it")
        return self

    def round_of(self, step: int, total_steps: int) -> int:
        """Return the round (from 0) of an optimizer step (from 0) of `total_steps`; past the end the last one."""
        return min(self.num_rounds - 1, step * self.num_rounds // total_steps)

    def learns_in(self, number: int) -> bool:
        """Return whether the weighting model is updated in this round."""
        last = self.freeze_after_round
        return number >= self.warmup_rounds and (last is None or number <= last)


def with_present_keys(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a callback's stored state with the keys of checkpoints in which rounds were called stages renamed."""
    return {key.replace("stage", "round"): value for key, value in state.items()}
