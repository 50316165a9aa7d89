"""Quantities: numbers by hand, and each committed claim's number again from the committed raw numbers."""

import json
from pathlib import Path

import pytest

from benchmarks.harness.discovery import load, names_of
from benchmarks.harness.output import judge
from benchmarks.harness.quantities import (
    Below,
    Drop,
    Gain,
    Magnitude,
    Metric,
    Ratio,
    RecoveredShare,
    RelativeGain,
    Value,
)

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "claims"
LOSS = Metric("loss", "loss", "nats", higher_is_better=False)
ACCURACY = Metric("accuracy", "accuracy", "%", scale=100, difference_unit="points")
START = Metric("start", "start", "nats", higher_is_better=False)
NUMBERS = {
    "ours": {"loss": 4.6, "accuracy": 0.9, "start": 9.2},
    "other": {"loss": 4.8, "accuracy": 0.75, "start": 9.0},
    "best": {"loss": 4.3, "accuracy": -0.5, "start": 9.0},
}


@pytest.mark.parametrize(
    ("quantity", "expected", "unit"),
    [
        (Value(ACCURACY, "best"), -50, "%"),
        (Magnitude(ACCURACY, "best"), 50, "%"),
        (Below(ACCURACY, "other", limit=0.8), 5, "%"),
        (Drop(LOSS, "ours", before=START), 2, "times"),
        (Gain(LOSS, "ours", "other"), 0.2, "nats"),
        (Gain(ACCURACY, "ours", "other"), 15, "points"),
        (RelativeGain(LOSS, "ours", "other"), 100 * 0.2 / 4.8, "%"),
        (RelativeGain(ACCURACY, "ours", "other"), 20, "%"),
        (Ratio(LOSS, "ours", "other"), 4.6 / 4.8, "times"),
        (RecoveredShare(LOSS, "ours", "other", best="best"), 40, "%"),
    ],
)
def test_quantities_by_hand(quantity, expected, unit):
    assert quantity.of(NUMBERS) == pytest.approx(expected)
    assert quantity.unit == unit
    needed = {arm: {metric.key: NUMBERS[arm][metric.key] for metric in quantity.metrics} for arm in quantity.arms}
    assert quantity.of(needed) == pytest.approx(expected)  # what it names is all that it needs


def test_counts_stay_whole():
    size = Metric("size", "parameters")
    assert isinstance(Value(size, "a").of({"a": {"size": 3}}), int)


@pytest.mark.parametrize("name", names_of("claims"))
def test_committed_claims_follow_from_the_committed_numbers(name):
    if not (RESULTS / f"{name}.json").is_file():
        pytest.skip(f"the claims of {name} have not been measured on all their seeds yet")
    stored = json.loads((RESULTS / f"{name}.json").read_text())
    by_seed = {}
    for arm, entry in stored["arms"].items():
        for seed, numbers in entry["results"].items():
            by_seed.setdefault(int(seed), {})[arm] = numbers
    entries = {entry["id"]: entry for entry in stored["claims"] + stored["reported"]}
    claims = load("claims", name)().claims
    assert [claim.id for claim in claims] == list(entries)
    for claim in claims:
        assert judge(claim, by_seed) == entries[claim.id]
