"""Rounds: stages of a recipe repeated, each round from what the one before has trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pangu_modules.engine.stages import BaseStage, Stage

REFERENCES = ("start_from", "teacher_from")


def repeat_stages(stages: Mapping[str, BaseStage], names: Sequence[str], rounds: int) -> dict[str, BaseStage]:
    """Return stages in which some are there several times, e.g. sampling, scoring and distilling.

    Those of round 2 are called ``sample_2`` and so on, have a seed of their own, and take from each other what those of
    round 1 do; what in round 1 starts from the model that the repeated stages train further, starts in round 2 from
    what round 1 has left. Stages behind them take what the last round leaves.

    Args:
        stages: of a recipe, in order.
        names: of those to repeat, next to each other; the last one trains.
        rounds: how often each runs.

    Raises:
        ValueError: the names are no such stages, or there is no round.
    """
    everything = list(stages)
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: give at least 1")
    first = everything.index(names[0]) if names and names[0] in stages else None
    if first is None or everything[first : first + len(names)] != list(names):
        raise ValueError(f"names={list(names)}: stages to repeat follow each other; there are {', '.join(everything)}")
    last = stages[names[-1]]
    if not isinstance(last, Stage) or last.start_from is None:
        raise ValueError(f"stage {names[-1]!r} ends a round, so it trains, and starts from an earlier stage")
    repeated: dict[str, BaseStage] = {name: stages[name] for name in everything[: first + len(names)]}
    for number in range(2, rounds + 1):
        # The student of the round: what the round before has trained.
        renamed = {last.start_from: _numbered(names[-1], number - 1)} | {
            name: _numbered(name, number) for name in names
        }
        for name in names:
            seeded = stages[name].derive(seed=stages[name].seed + number - 1)
            repeated[_numbered(name, number)] = _renamed(seeded, renamed)
    latest = {name: _numbered(name, rounds) for name in names}
    return repeated | {name: _renamed(stages[name], latest) for name in everything[first + len(names) :]}


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}_{number}"


def _renamed(stage: BaseStage, names: Mapping[str, str]) -> BaseStage:
    """Return a stage that takes from other stages where their names are among these."""
    changes: dict[str, Any] = {
        field: names.get(getattr(stage, field), getattr(stage, field))
        for field in REFERENCES
        if getattr(stage, field, None) is not None
    }
    if stage.data_sources:
        sources = [
            f"{field}={names.get(name, name)}" if field else names.get(name, name)
            for name, field in stage.data_sources.items()
        ]
        changes["data_from"] = sources[0] if len(sources) == 1 else tuple(sources)
    return stage.derive(**changes)
