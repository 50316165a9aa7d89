"""What a method declares: its arms, its claims about them, and the metrics they are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.verdicts import Rule

SeedResults = Mapping[str, Mapping[str, float]]
"""Arm -> its numbers, of one seed."""


@dataclass(frozen=True)
class Metric:
    """A number that arms return: where it stands, how it is printed, and which direction is better.

    Args:
        key: name in the arm's results, e.g. ``test/accuracy``; the harness adds ``seconds`` and ``cpu_seconds``.
        title: name in tables and figures.
        unit: unit after scaling.
        scale: factor from the arm's number to the unit, e.g. 100 for percent.
        digits: digits after the point in tables.
        higher_is_better: the sign of gains.
        difference_unit: unit of differences, where it is another one (points, not percent).
        log_axis: whether figures use a logarithmic axis.
    """

    key: str
    title: str
    unit: str = ""
    scale: float = 1  # an int, so that counts stay whole numbers
    digits: int = 3
    higher_is_better: bool = True
    difference_unit: str = ""
    log_axis: bool = False


CPU_SECONDS = Metric("cpu_seconds", "CPU time", "s", digits=0, higher_is_better=False)


@dataclass(frozen=True)
class Gain:
    """How much better `arm` is than `over`, positive where it is better, in the metric's unit."""

    metric: Metric
    arm: str
    over: str

    @property
    def unit(self) -> str:
        """Unit of the difference."""
        return self.metric.difference_unit or self.metric.unit

    def of(self, results: SeedResults) -> float:
        """Return the gain in one seed."""
        gain = self.metric.scale * (results[self.arm][self.metric.key] - results[self.over][self.metric.key])
        return gain if self.metric.higher_is_better else -gain


@dataclass(frozen=True)
class Ratio:
    """`arm` divided by `over`."""

    metric: Metric
    arm: str
    over: str
    unit: str = "times"

    def of(self, results: SeedResults) -> float:
        """Return the ratio in one seed."""
        return results[self.arm][self.metric.key] / results[self.over][self.metric.key]


@dataclass(frozen=True)
class Claim:
    """A statement about two arms.

    Args:
        id: short name, unique within the method.
        statement: the claim in one sentence, with its margin.
        quantity: the number that is measured in each seed.
        rule: what the numbers must satisfy; None for what is only reported.
        paper: what the paper states, at its own scale; empty where it says nothing.
    """

    id: str
    statement: str
    quantity: Gain | Ratio
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

    def __post_init__(self) -> None:
        known: list[str] = []
        for arm in self.arms:
            _check_names(f"arm {arm.name!r}: needs", arm.needs, known)
            known.append(arm.name)
        for claim in self.claims:
            _check_names(f"claim {claim.id!r}:", (claim.quantity.arm, claim.quantity.over), known)
        for kind, names in (("arm", known), ("claim", [claim.id for claim in self.claims])):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"method {self.name!r}: more than one {kind} is named {', '.join(repeated)}")

    def arm(self, name: str) -> Arm:
        """Return the arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)


def _check_names(what: str, names: tuple[str, ...], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(
                f"{what} {name!r}, which is no arm declared before; there are: {', '.join(known) or 'none'}"
            )
