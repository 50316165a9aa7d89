"""What a method declares: its arms, and its claims about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.quantities import Metric, Quantity
from benchmarks.harness.verdicts import Rule


@dataclass(frozen=True)
class Claim:
    """A statement about a quantity that arms measure.

    Args:
        id: short name, unique within the method.
        statement: the claim in one sentence, with its margin.
        quantity: the number that is measured in each seed.
        rule: what the numbers must satisfy; None for what is only reported.
        paper: what the paper states, at its own scale; empty where it says nothing.
    """

    id: str
    statement: str
    quantity: Quantity
    rule: Rule | None = None
    paper: str = ""


@dataclass(frozen=True)
class ArmInput:
    """A finished arm of the same seed, as a dependent arm sees it: its folder and its numbers."""

    folder: Path
    values: Mapping[str, float]


ArmFunction = Callable[[int, Mapping[str, ArmInput], Path], Mapping[str, float]]
"""``(seed, inputs, folder) -> numbers``: a picklable callable; `inputs` holds the arms it needs by name, `folder` is
empty and its own, files for dependent arms stay there."""


@dataclass(frozen=True)
class Arm:
    """One way to do the task, run once per seed.

    Args:
        name: short name.
        description: one line for the tables.
        run: the function that does it.
        config: plain data that determines the outcome beside the seed; a change makes earlier results stale.
        needs: arms of the same seed that must have finished.
        seeds: how many of the method's seeds it runs on (None for all); fewer for what is only reported.
    """

    name: str
    description: str
    run: ArmFunction
    config: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    seeds: int | None = None


@dataclass(frozen=True)
class Method:
    """Everything that the harness must know of a method.

    Args:
        name: name of the result files.
        title: heading of the result table.
        source: the paper.
        setup: what was run, in sentences that hold on any machine.
        arms: in an order in which each arm comes after those it needs.
        claims: gated and reported statements.
        metrics: columns of the arms' table.
        figure: metrics drawn in the figure, one panel each.
        seeds: number of seeds; they are 0, 1, 2, ...
        quick: arm that a quick check runs, at its real size but in a few minutes with all that it needs.

    Raises:
        ValueError: names repeat, or an arm or a claim names an arm that does not exist (or comes later).
    """

    name: str
    title: str
    source: str
    setup: str
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]
    metrics: tuple[Metric, ...]
    figure: tuple[Metric, ...]
    seeds: int
    quick: str = ""

    def __post_init__(self) -> None:
        known: list[str] = []
        for arm in self.arms:
            _check_names(f"arm {arm.name!r}: needs", arm.needs, known)
            known.append(arm.name)
        for claim in self.claims:
            _check_names(f"claim {claim.id!r}:", claim.quantity.arms, known)
        if self.quick:
            _check_names("quick:", (self.quick,), known)
        for kind, names in (("arm", known), ("claim", [claim.id for claim in self.claims])):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"method {self.name!r}: more than one {kind} is named {', '.join(repeated)}")

    def needed(self, arm: Arm) -> list[str]:
        """Return the names of all arms that must run before `arm`, in an order in which they can."""
        names = {each for name in arm.needs for each in (name, *self.needed(self.arm(name)))}
        return [each.name for each in self.arms if each.name in names]

    def arm(self, name: str) -> Arm:
        """Return the arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)


def _check_names(what: str, names: tuple[str, ...], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(
                f"{what} {name!r}, which is no arm declared before; there are: {', '.join(known) or 'none'}"
            )
