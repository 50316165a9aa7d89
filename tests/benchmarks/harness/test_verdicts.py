import math

import pytest

from benchmarks.harness.verdicts import AlwaysEqual, EverySeedAbove, MeanAbove, student_t, summarize


def test_bounds_equal_a_published_t_table():
    # One-sided 95 % quantiles of Student's t, to the three digits printed in tables.
    for degrees, quantile in {1: 6.314, 2: 2.920, 3: 2.353, 5: 2.015, 30: 1.697}.items():
        assert student_t(0.95, degrees) == pytest.approx(quantile, abs=5e-4)


def test_summary_of_four_seeds():
    summary = summarize([1.0, 2.0, 3.0, 4.0])
    assert summary.mean == 2.5
    assert summary.spread == pytest.approx(math.sqrt(5 / 3))
    assert (summary.minimum, summary.maximum) == (1.0, 4.0)
    half = 2.35336 * math.sqrt(5 / 3) / 2  # t of 3 degrees of freedom x standard error
    assert summary.lower == pytest.approx(2.5 - half, abs=1e-4)
    assert summary.upper == pytest.approx(2.5 + half, abs=1e-4)


def test_summary_of_one_seed_has_no_spread_and_of_none_is_an_error():
    assert summarize([3.0]).spread == 0
    assert summarize([3.0]).lower == 3.0
    with pytest.raises(ValueError, match="at least one seed"):
        summarize([])


@pytest.mark.parametrize(
    ("values", "margin", "verdict"),
    [
        ([0.015, 0.009, 0.011, 0.011], 0.0, "holds"),
        ([-0.015, -0.009, -0.011, -0.011], 0.0, "does not hold"),
        ([0.025, 0.050, 0.013, 0.016], 0.01, "undecided"),  # mean 0.026, but one seed pulls it
        ([0.025, 0.050, 0.013, 0.016], 0.0, "holds"),
        ([0.02, 0.02, 0.02], 0.02, "undecided"),  # no noise, exactly at the margin
        ([0.02, 0.02, 0.02], 0.01, "holds"),
        ([5.0, 5.0], 0.0, "undecided"),  # two seeds never decide
        ([], 0.0, "undecided"),
    ],
)
def test_mean_above_compares_the_t_bounds_with_the_margin(values, margin, verdict):
    assert MeanAbove(margin).judge(values) == verdict


def test_a_lower_confidence_decides_earlier():
    values = [0.025, 0.050, 0.013, 0.016]  # 90 %: 0.026 - 1.638 x 0.0084 = 0.0122
    assert MeanAbove(0.01, confidence=0.9).judge(values) == "holds"
    assert MeanAbove(0.01, confidence=0.95).judge(values) == "undecided"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([1, 2, 3], "holds"), ([1, 2, 0], "does not hold"), ([-1, -1], "undecided"), ([1, 2], "undecided")],
)
def test_every_seed_above(values, verdict):
    assert EverySeedAbove(0).judge(values) == verdict


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([7, 7, 7], "holds"), ([7, 7, 8], "does not hold"), ([7, 7], "undecided")],
)
def test_always_equal(values, verdict):
    assert AlwaysEqual(7).judge(values) == verdict


def test_rules_say_what_they_ask():
    assert str(MeanAbove(-0.005)) == "mean above -0.005 (one-sided t bound, 95%)"
    assert str(EverySeedAbove(0)) == "every seed above 0"
    assert str(AlwaysEqual(55_680)) == "every seed exactly 55,680"
