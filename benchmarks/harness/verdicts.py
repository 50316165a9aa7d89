"""Verdicts: what a list of values, one per seed, says about a claim. Pure functions of numbers.

A value is usually a difference between two arms of the same seed, so that what a seed does to both cancels. With n
seeds of mean m and sample standard deviation s, the one-sided bounds of the true mean at confidence c are
``m -/+ t(c, n - 1) * s / sqrt(n)`` with Student's t quantile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

Verdict = Literal["holds", "does not hold", "undecided"]

MIN_SEEDS = 3
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Statistics of one value per seed.

    Attributes:
        mean: mean over seeds.
        spread: sample standard deviation (0 for one seed).
        minimum: smallest value.
        maximum: largest value.
        lower: one-sided lower bound of the true mean (the mean itself for one seed).
        upper: one-sided upper bound of the true mean.
    """

    mean: float
    spread: float
    minimum: float
    maximum: float
    lower: float
    upper: float


def summarize(values: Sequence[float], confidence: float = CONFIDENCE) -> Summary:
    """Return the statistics of `values`, one per seed.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("no values to summarize: at least one seed must have finished")
    mean, spread, margin = fmean(values), 0.0, 0.0
    if len(values) > 1:
        spread = stdev(values)
        margin = student_t(confidence, len(values) - 1) * spread / math.sqrt(len(values))
    return Summary(mean, spread, min(values), max(values), mean - margin, mean + margin)


def student_t(confidence: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution with `degrees` degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, confidence))


@dataclass(frozen=True)
class MeanAbove:
    """The mean over seeds is above `margin`.

    Holds if the one-sided lower bound of the mean is above the margin, does not hold if the upper bound is below it,
    and is undecided in between or with fewer than three seeds. So a true mean at the margin is called "holds" in at
    most ``1 - confidence`` of all experiments.
    """

    margin: float = 0.0
    confidence: float = CONFIDENCE

    def judge(self, values: Sequence[float]) -> Verdict:
        """Return the verdict on one value per seed."""
        if len(values) < MIN_SEEDS:
            return "undecided"
        summary = summarize(values, self.confidence)
        if summary.lower > self.margin:
            return "holds"
        return "does not hold" if summary.upper < self.margin else "undecided"

    def __str__(self) -> str:
        return f"mean above {self.margin:g} (one-sided t bound, {self.confidence:.0%})"


@dataclass(frozen=True)
class EverySeedAbove:
    """Every seed is above `margin`.

    Holds if all seeds are and does not hold if one is not, whatever the mean: noise between seeds can only break such
    a claim. Undecided with fewer than three seeds.
    """

    margin: float = 0.0

    def judge(self, values: Sequence[float]) -> Verdict:
        """Return the verdict on one value per seed."""
        return _all_or_none([value > self.margin for value in values])

    def __str__(self) -> str:
        return f"every seed above {self.margin:g}"


@dataclass(frozen=True)
class AlwaysEqual:
    """Every seed is exactly `target`: for counts, which have no noise. Undecided with fewer than three seeds."""

    target: float

    def judge(self, values: Sequence[float]) -> Verdict:
        """Return the verdict on one value per seed."""
        return _all_or_none([value == self.target for value in values])

    def __str__(self) -> str:
        return f"every seed exactly {self.target:,g}"


@dataclass(frozen=True)
class MostSeedsAbove:
    """At least two thirds of the seeds are above `margin`; undecided with fewer than three seeds."""

    margin: float = 0.0

    def judge(self, values: Sequence[float]) -> Verdict:
        """Return the verdict on one value per seed."""
        if len(values) < MIN_SEEDS:
            return "undecided"
        return "holds" if 3 * sum(value > self.margin for value in values) >= 2 * len(values) else "does not hold"

    def __str__(self) -> str:
        return f"two thirds of the seeds above {self.margin:g}"


Rule = MeanAbove | EverySeedAbove | AlwaysEqual | MostSeedsAbove


def _all_or_none(satisfied: Sequence[bool]) -> Verdict:
    if len(satisfied) < MIN_SEEDS:
        return "undecided"
    return "holds" if all(satisfied) else "does not hold"
