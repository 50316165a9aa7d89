"""The schedule of binarization: a pure function from the optimizer step to t (or lambda) and the hard tail."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pangu_modules.llm.onebit.config import CONTINUOUS_PHASES, OneBitConfig


@dataclass(frozen=True)
class Timeline:
    """Where the parts of a run lie, in optimizer steps.

    Attributes:
        schedule_steps: steps in which t rises; afterwards it has its end value.
        tail_start: first step (0-based) of the hard tail; `total_steps` if there is none.
        total_steps: steps of the whole run.
    """

    schedule_steps: int
    tail_start: int
    total_steps: int


@dataclass(frozen=True)
class Moment:
    """What holds at one step.

    Attributes:
        phase: number c of the phase, a fraction where the schedule has none.
        knob: value of the weight function's knob: t of progressive, lambda of the blend, 0 for all others.
        hard: whether the weights are binary (the tail).
    """

    phase: float
    knob: float
    hard: bool


def timeline(config: OneBitConfig, total_steps: float) -> Timeline:
    """Return the parts of a run of `total_steps` optimizer steps.

    Raises:
        ValueError: the number of steps is unknown, or schedule and tail do not fit into it.
    """
    if total_steps <= 0 or math.isinf(total_steps):
        raise ValueError("the number of training steps is unknown: set trainer.max_steps or trainer.max_epochs")
    total = int(total_steps)
    asked = config.schedule_steps
    # Rounding down leaves no step to two parts; 1e-9 undoes the error of products like 0.95 * 20.
    steps = asked if isinstance(asked, int) else max(1, math.floor(asked * total + 1e-9))
    tail = 0 if config.hard_tail == "none" else math.floor(config.tail_share * total + 1e-9)
    if steps + tail > total:
        raise ValueError(
            f"schedule_steps={steps} and the hard tail of {tail} steps (tail_share={config.tail_share:g}) do not "
            f"fit into the {total} optimizer steps of this run: train longer, or give schedule_steps as a share"
        )
    return Timeline(schedule_steps=steps, tail_start=total - tail, total_steps=total)


def moment(config: OneBitConfig, parts: Timeline, step: int) -> Moment:
    """Return what holds at an optimizer step (0-based).

    The phase is ``c = origin + floor(phases * step / schedule_steps)``, at most `phases`; without phases it is
    ``20 * step / schedule_steps``. lambda of the blend rises linearly with the step.
    """
    phase = phase_at(config, parts, step)
    knob = 0.0
    if config.method == "progressive":
        knob = sharpness(config, phase)
    elif config.method == "lambda":
        knob = min(1.0, step / parts.schedule_steps)
    return Moment(phase=phase, knob=knob, hard=step >= parts.tail_start)


def phase_at(config: OneBitConfig, parts: Timeline, step: int) -> float:
    """Return the phase number c at a step."""
    if config.phases == 0:
        return CONTINUOUS_PHASES * min(1.0, step / parts.schedule_steps)
    return float(min(config.phases, config.phase_origin + config.phases * step // parts.schedule_steps))


def sharpness(config: OneBitConfig, phase: float) -> float:
    """Return t in a phase: ``t_a (exp(t_b c) - 1)`` (the paper), or another curve to the same end value.

    "exp" rises geometrically from the paper's first value, "linear" from 0, "constant" is the end value throughout.
    """
    share = phase / (config.phases or CONTINUOUS_PHASES)
    if config.schedule == "paper":
        return config.t_a * math.expm1(config.t_b * phase)
    if config.schedule == "linear":
        return config.t_end * share
    if config.schedule == "exp":
        first = config.t_a * math.expm1(config.t_b)
        return float(first ** (1 - share) * config.t_end**share)
    return config.t_end
