"""The stages of DWM: which stage an optimizer step lies in, and how many updates are due there. Pure functions."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from pangu_modules.common.config import Config


class StageSchedule(Config):
    """When the weighting model learns and when it is frozen (arXiv:2507.16178: alternate training in five stages)."""

    n_stages: PositiveInt = Field(5, description="Stages of equal length that training is cut into.")
    warmup_stages: NonNegativeInt = Field(
        1, description="First stages with uniform weights; n_stages: uniform throughout."
    )
    mode: Literal["staged", "online"] = Field(
        "staged",
        description="'staged': updates at the start of each stage, then frozen; 'online': one update every dwm_every "
        "optimizer steps.",
    )
    dwm_steps: PositiveInt = Field(200, description="Updates of the weighting model in each stage; staged only.")
    dwm_every: PositiveInt = Field(10, description="Optimizer steps from one update to the next; online only.")
    lm_in_phase_a: Literal["virtual", "real"] = Field(
        "virtual",
        description="What the trained model does during a stage's updates; staged only. 'virtual': it waits, the "
        "updates draw batches of their own; 'real': it trains on, one update per training batch.",
    )
    freeze_after_stage: NonNegativeInt | None = Field(
        None, description="Last stage with updates (from 0), e.g. 1 learns in one stage alone; empty: never freeze."
    )

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        if self.warmup_stages > self.n_stages:
            raise ValueError(f"warmup_stages={self.warmup_stages} is more than n_stages={self.n_stages}: lower it")
        return self

    def stage(self, step: int, total_steps: int) -> int:
        """Return the stage (from 0) of an optimizer step (from 0) of `total_steps`; past the end the last one."""
        return min(self.n_stages - 1, step * self.n_stages // total_steps)

    def learns_in(self, stage: int) -> bool:
        """Return whether the weighting model is updated in this stage."""
        last = self.freeze_after_stage
        return stage >= self.warmup_stages and (last is None or stage <= last)
