"""What a claim measures in each seed: a metric of the arms' numbers, and the quantities that are made of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

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


class Quantity(Protocol):
    """One number a seed, made of the numbers of one arm or several."""

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms it needs in a seed."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that each of these arms must have measured."""

    @property
    def unit(self) -> str:
        """Unit of the number."""

    def of(self, results: SeedResults) -> float:
        """Return the number in one seed."""


@dataclass(frozen=True)
class OneArm:
    """Base of the quantities of one metric of one arm."""

    metric: Metric
    arm: str

    @property
    def arms(self) -> tuple[str, ...]:
        """That arm."""
        return (self.arm,)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """That metric."""
        return (self.metric,)

    @property
    def unit(self) -> str:
        """The metric's unit."""
        return self.metric.unit


@dataclass(frozen=True)
class Value(OneArm):
    """The arm's own number, in the metric's unit."""

    def of(self, results: SeedResults) -> float:
        """Return the number in one seed."""
        return self.metric.scale * results[self.arm][self.metric.key]


@dataclass(frozen=True)
class Magnitude(OneArm):
    """The size of the arm's number whatever its sign, in the metric's unit."""

    def of(self, results: SeedResults) -> float:
        """Return the size in one seed."""
        return self.metric.scale * abs(results[self.arm][self.metric.key])


@dataclass(frozen=True)
class Below(OneArm):
    """How far the arm's number is below `limit` (given as the arm gives it, unscaled), in the metric's unit."""

    limit: float

    def of(self, results: SeedResults) -> float:
        """Return the distance in one seed; negative where the limit is exceeded."""
        return self.metric.scale * (self.limit - results[self.arm][self.metric.key])


@dataclass(frozen=True)
class Drop(OneArm):
    """How many times smaller the arm's `metric` is than its metric `before`, e.g. a perplexity by training."""

    before: Metric

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Both metrics."""
        return (self.metric, self.before)

    @property
    def unit(self) -> str:
        """A factor."""
        return "times"

    def of(self, results: SeedResults) -> float:
        """Return the factor in one seed."""
        return results[self.arm][self.before.key] / results[self.arm][self.metric.key]


@dataclass(frozen=True)
class TwoArms(OneArm):
    """Base of the quantities that compare one metric of two arms."""

    over: str

    @property
    def arms(self) -> tuple[str, ...]:
        """The arm and the one it is compared with."""
        return (self.arm, self.over)


@dataclass(frozen=True)
class Gain(TwoArms):
    """How much better `arm` is than `over`, positive where it is better, in the unit of the metric's differences."""

    @property
    def unit(self) -> str:
        """Unit of the difference."""
        return self.metric.difference_unit or self.metric.unit

    def of(self, results: SeedResults) -> float:
        """Return the gain in one seed."""
        gain = self.metric.scale * (results[self.arm][self.metric.key] - results[self.over][self.metric.key])
        return gain if self.metric.higher_is_better else -gain


@dataclass(frozen=True)
class RelativeGain(TwoArms):
    """How much better `arm` is than `over`, in percent of `over`."""

    @property
    def unit(self) -> str:
        """Percent."""
        return "%"

    def of(self, results: SeedResults) -> float:
        """Return the gain in one seed, in percent."""
        ratio = results[self.arm][self.metric.key] / results[self.over][self.metric.key]
        return 100 * (ratio - 1 if self.metric.higher_is_better else 1 - ratio)


@dataclass(frozen=True)
class Ratio(TwoArms):
    """`arm` divided by `over`, whichever direction is better."""

    @property
    def unit(self) -> str:
        """A factor."""
        return "times"

    def of(self, results: SeedResults) -> float:
        """Return the ratio in one seed."""
        return results[self.arm][self.metric.key] / results[self.over][self.metric.key]


@dataclass(frozen=True)
class RecoveredShare(TwoArms):
    """How much of the way from `over` to `best` the arm has gone, in percent (0: like `over`, 100: like `best`)."""

    best: str

    @property
    def arms(self) -> tuple[str, ...]:
        """The arm and both ends of the way."""
        return (self.arm, self.over, self.best)

    @property
    def unit(self) -> str:
        """Percent."""
        return "%"

    def of(self, results: SeedResults) -> float:
        """Return the share in one seed, in percent."""
        own, over, best = (results[name][self.metric.key] for name in self.arms)
        return 100 * (own - over) / (best - over)
