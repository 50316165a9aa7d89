"""The schedule against the published numbers, and what it refuses."""

import itertools
import math

import pytest

from pangu_modules import OneBitConfig
from pangu_modules.llm.onebit.schedule import moment, phase_at, timeline


def knobs(total, **fields):
    config = OneBitConfig(**{"init": "none", **fields})
    parts = timeline(config, total)
    return [moment(config, parts, step).knob for step in range(total)]


def test_the_papers_values_in_its_phases():
    found = knobs(20, schedule_steps=1.0, hard_tail="none")
    for phase, value in ((1, 0.32), (2, 0.72), (3, 1.22), (5, 2.6), (8, 6.3), (10, 10.4), (15, 34.0), (20, 104.6)):
        digits = 0 if value == 34.0 else (2 if value < 2 else 1)
        assert round(found[phase - 1], digits) == value
    assert OneBitConfig().t_end == pytest.approx(104.58, abs=0.01)


def test_phases_are_of_equal_length_and_the_value_stays_afterwards():
    found = knobs(200, schedule_steps=100, hard_tail="none")
    assert len(set(found[:100])) == 20
    assert all(len(set(found[start : start + 5])) == 1 for start in range(0, 100, 5))
    assert set(found[95:]) == {found[-1]}
    assert found == sorted(found)


def test_origin_zero_starts_with_plain_training():
    found = knobs(40, schedule_steps=20, hard_tail="none", phase_origin=0)
    assert found[0] == 0
    assert found[1] == pytest.approx(1.3 * (math.exp(0.22) - 1))
    assert found[20] == pytest.approx(OneBitConfig().t_end)


def test_without_phases_t_rises_with_every_step_from_zero():
    found = knobs(101, schedule_steps=100, hard_tail="none", phases=0)
    assert found[0] == 0
    assert all(one < other for one, other in itertools.pairwise(found))
    assert found[50] == pytest.approx(1.3 * (math.exp(2.2) - 1))
    assert found[100] == pytest.approx(OneBitConfig().t_end)


@pytest.mark.parametrize("schedule", ["exp", "linear", "constant"])
def test_other_curves_end_at_the_same_value(schedule):
    found = knobs(100, schedule_steps=1.0, hard_tail="none", schedule=schedule)
    assert found[-1] == pytest.approx(OneBitConfig().t_end)
    assert found == sorted(found)
    if schedule == "constant":
        assert len(set(found)) == 1
    if schedule == "linear":
        assert found[0] == pytest.approx(OneBitConfig().t_end / 20)
    if schedule == "exp":
        assert found[50] / found[45] == pytest.approx(found[95] / found[90])


def test_lambda_rises_linearly_to_one():
    found = knobs(20, schedule_steps=10, hard_tail="none", method="lambda")
    assert found[:11] == pytest.approx([step / 10 for step in range(11)])
    assert set(found[10:]) == {1.0}


def test_the_other_methods_have_no_knob():
    assert set(knobs(20, method="ste")) == {0.0}


def test_the_tail_is_the_last_part():
    config = OneBitConfig(init="none", schedule_steps=0.9, tail_share=0.1)
    parts = timeline(config, 200)
    assert (parts.schedule_steps, parts.tail_start, parts.total_steps) == (180, 180, 200)
    assert [moment(config, parts, step).hard for step in (0, 179, 180, 199)] == [False, False, True, True]
    assert moment(config, parts, 190).knob == pytest.approx(config.t_end)
    assert timeline(config.derive(hard_tail="none"), 200).tail_start == 200


@pytest.mark.parametrize("total", [1, 2, 7, 19, 20, 21, 1000])
def test_shares_fit_into_any_run(total):
    parts = timeline(OneBitConfig(), total)
    assert 1 <= parts.schedule_steps <= parts.tail_start <= total
    if total == 20:
        assert (parts.schedule_steps, parts.tail_start) == (19, 19)


def test_the_schedule_depends_on_the_step_alone():
    config = OneBitConfig(init="none")
    parts = timeline(config, 1000)
    assert [moment(config, parts, step) for step in (700, 3, 700)] == [
        moment(config, parts, 700),
        moment(config, parts, 3),
        moment(config, parts, 700),
    ]
    assert phase_at(config, parts, 10**9) == 20


@pytest.mark.parametrize("total", [math.inf, -1, 0])
def test_an_unknown_length_is_refused(total):
    with pytest.raises(ValueError, match=r"number of training steps is unknown: set trainer\.max_steps"):
        timeline(OneBitConfig(), total)


def test_a_schedule_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"schedule_steps=98 and the hard tail of 5 steps .* 100 optimizer steps"):
        timeline(OneBitConfig(schedule_steps=98), 100)
    with pytest.raises(ValueError, match="schedule_steps=200"):
        timeline(OneBitConfig(schedule_steps=200, hard_tail="none"), 100)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule_steps": 0.98}, "schedule_steps=0.98 and tail_share=0.05 add up to more than 1"),
        ({"method": "bitnet_b1"}, "init='learned' needs a method scaled by row means"),
        (
            {"method": "onebit", "init": "none", "scale_grad": True},
            "scale_grad=True needs a method scaled by row means",
        ),
        ({"scales": "learned", "scale_grad": True}, "set scales=dual"),
        ({"method": "onebit", "init": "none", "scale_lr_mult": 2.0}, "scale_lr_mult"),
        ({"exclude": ("(",)}, r"'\(' is no regular expression"),
        ({"targets": ()}, "targets"),
        ({"phases": -1}, "phases"),
        ({"phase_origin": 2}, "phase_origin"),
        ({"t_a": 0}, "t_a"),
        ({"schedule_steps": 0}, "schedule_steps"),
        ({"schedule_steps": 1.5}, "schedule_steps"),
        ({"init_steps": 0}, "init_steps"),
        ({"metod": "ste"}, "Did you mean 'method'"),
        ({"method": "binary"}, "method"),
    ],
)
def test_bad_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        OneBitConfig(**fields)


def test_auto_differentiates_the_scale_of_progressive_alone():
    assert OneBitConfig().differentiates_scale
    assert not OneBitConfig(method="ste").differentiates_scale
    assert OneBitConfig(method="ste", scale_grad=True).differentiates_scale
    assert not OneBitConfig(scale_grad=False).differentiates_scale
    assert not OneBitConfig(scales="learned").differentiates_scale


def test_the_length_keeps_its_type_in_plain_data():
    for value in (1, 1.0, 50, 0.5):
        again = OneBitConfig.model_validate(OneBitConfig(schedule_steps=value, hard_tail="none").plain())
        assert again.schedule_steps == value
        assert isinstance(again.schedule_steps, type(value))
