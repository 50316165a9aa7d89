"""The race harness: checks that both sides compute the same, then measures them in turn, A B A B.

Machine and load drift over a run, so only neighbours are compared: each pair gives one ratio, peer / ours. A ratio
above 1 means ours is better (faster, smaller).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

REPEATS = 7
MIN_REPEATS = 5


@dataclass(frozen=True)
class Race:
    """Two measurements of one thing; smaller is better.

    Args:
        id: short name, unique within the benchmark.
        title: what is compared, in one line.
        ours: measures our side once and returns the number (see `timed`).
        peer: measures the peer.
        peer_name: what the peer is.
        unit: unit of both numbers.
        target: least acceptable ratio peer / ours; None for what is only reported.
        exact: whether the numbers are counts without noise, so that measuring once is enough.
    """

    id: str
    title: str
    ours: Callable[[], float]
    peer: Callable[[], float]
    peer_name: str
    unit: str = "s"
    target: float | None = None
    exact: bool = False


@dataclass(frozen=True)
class Contest:
    """Races between the same two sides, and the proof that these compute the same.

    Args:
        name: what the sides are, for messages.
        check: returns the largest difference between both sides' outcomes and the bound it must keep.
        races: what is measured then.
    """

    name: str
    check: Callable[[], tuple[float, float]]
    races: tuple[Race, ...]


@dataclass(frozen=True)
class Benchmark:
    """The contests of one method.

    Args:
        title: heading of the result.
        setup: what is raced, in sentences that hold on any machine.
        contests: may be a generator that builds each contest when its turn comes, so that one at a time is in memory.
    """

    title: str
    setup: str
    contests: Iterable[Contest]


class UnequalOutcomeError(RuntimeError):
    """The two sides of a contest do not compute the same, so that their times cannot be compared."""


def timed(function: Callable[[], Any]) -> Callable[[], float]:
    """Return a measurement: one call of `function`, in wall-clock seconds."""

    def measure() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return measure


def run_contests(
    contests: Iterable[Contest], *, repeats: int = REPEATS, report: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Check and run contests one after another.

    Args:
        contests: see `Benchmark`.
        repeats: pairs of measurements of each race, after one pair to warm up.
        report: receives one line per race.

    Returns:
        One entry of the result file per race.

    Raises:
        UnequalOutcomeError: a check's difference exceeds its bound, or is not a number.
    """
    entries = []
    for contest in contests:
        error, bound = contest.check()
        if not error <= bound:
            raise UnequalOutcomeError(
                f"{contest.name}: the two sides differ by {error:.3g}, more than {bound:.3g}; no race between them"
            )
        for race in contest.races:
            entry = summarize(race, *measure(race, repeats)) | {"error": float(error), "bound": float(bound)}
            report(f"{race.id}: ratio {entry['ratio']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})")
            entries.append(entry)
    return entries


def measure(race: Race, repeats: int) -> tuple[list[float], list[float]]:
    """Return `repeats` measurements of each side, taken in turn; of exact numbers a single pair."""
    if race.exact:
        return [race.ours()], [race.peer()]
    ours, peer = [], []
    for turn in range(repeats + 1):
        pair = (_quietly(race.ours), _quietly(race.peer))
        if turn > 0:  # the first pair warms up
            ours.append(pair[0])
            peer.append(pair[1])
    return ours, peer


def summarize(race: Race, ours: list[float], peer: list[float]) -> dict[str, Any]:
    """Return a race's entry: medians of both sides, median and quartiles of the paired ratios, target and met."""
    ratios = [b / a for a, b in zip(ours, peer, strict=True)]
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    ratio = median(ratios)
    return {
        "id": race.id,
        "title": race.title,
        "peer_name": race.peer_name,
        "unit": race.unit,
        "ours": median(ours),
        "peer": median(peer),
        "ratio": ratio,
        "low": low,
        "high": high,
        "target": race.target,
        "met": None if race.target is None else ratio >= race.target,
        "measurements": {"ours": ours, "peer": peer},
    }


def _quietly(measurement: Callable[[], float]) -> float:
    """Measure with the garbage of earlier measurements gone and no collection in between."""
    gc.collect()
    gc.disable()
    try:
        return measurement()
    finally:
        gc.enable()
