"""Configurations: immutable, closed, validated with messages that name field, value and remedy."""

from __future__ import annotations

import pytest
from pydantic import Field, PositiveInt, ValidationError

from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.common.config import Configurable
from pangu_modules.common.errors import readable
from pangu_modules.common.names import nearest


class Inner(BaseConfig):
    rate: float = Field(0.1, gt=0, lt=1)
    steps: int = 3


class Machine(Configurable):
    class Config(BaseConfig):
        width: PositiveInt = 4
        inner: Inner = Inner()

    def __init__(self, config: Config, extra: int = 0) -> None:
        self.config, self.extra = config, extra


class BiggerMachine(Machine):
    """Has no Config of its own."""


def test_builds_the_class_it_is_nested_in() -> None:
    machine = Machine.Config(width=2).build(extra=7)
    assert type(machine) is Machine
    assert (machine.config.width, machine.extra) == (2, 7)


def test_a_subclass_without_a_config_builds_itself() -> None:
    assert type(BiggerMachine.Config().build()) is BiggerMachine
    assert type(Machine.Config().build()) is Machine


def test_a_config_that_belongs_to_nothing_says_so() -> None:
    with pytest.raises(TypeError, match="Inner builds nothing: nest it"):
        Inner().build()


def test_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Inner().rate = 0.2  # type: ignore[misc]


def test_unknown_field_names_the_nearest() -> None:
    with pytest.raises(ValidationError, match=r"unknown field 'widht' of Machine.Config. Did you mean 'width'\?"):
        Machine.Config(widht=3)


def test_derive_changes_nested_fields_and_validates() -> None:
    config = Machine.Config(width=3)
    derived = config.derive(inner={"rate": 0.5})
    assert derived.inner == Inner(rate=0.5, steps=3)
    assert (derived.width, config.inner.rate) == (3, 0.1)
    with pytest.raises(ValidationError, match="less than 1"):
        config.derive(inner={"rate": 2.0})


def test_plain_round_trips() -> None:
    config = Machine.Config(width=3, inner=Inner(rate=0.2))
    assert Machine.Config.model_validate(config.plain()) == config


def test_a_wrong_nested_config_is_refused_when_the_class_is_defined() -> None:
    with pytest.raises(TypeError, match=r"must be a subclass of pangu_modules\.Config"):

        class Wrong(Configurable):
            Config = int  # type: ignore[assignment]


def test_nearest_is_silent_without_a_close_name() -> None:
    assert nearest("depht", ["depth", "width"]) == " Did you mean 'depth'?"
    assert nearest("zzz", ["depth"]) == ""


class Rate(BaseConfig):
    rate: float = 1.0
    kind: str = "a"


class Renamed(BaseConfig):
    renamed = {"speed": "method.rate", "count": "num_steps", "method": "method.kind"}

    method: Rate = Rate()
    num_steps: int = 1


def test_old_names_are_read_with_a_warning_that_names_both():
    with pytest.warns(UserWarning, match=r"Renamed: field 'speed' is now 'method.rate'"):
        config = Renamed.model_validate({"speed": 3.0, "count": 4, "method": "b"})
    assert config == Renamed(method=Rate(rate=3.0, kind="b"), num_steps=4)
    with pytest.warns(UserWarning, match="'count' is now 'num_steps'"):
        assert Renamed(num_steps=9).derive(count=2).num_steps == 2
    with pytest.warns(UserWarning, match="'speed'"):
        assert Renamed(method=Rate(kind="b")).derive(speed=2).method == Rate(rate=2.0, kind="b")


def test_present_names_are_read_without_a_warning(recwarn):
    assert Renamed.model_validate(Renamed(method=Rate(rate=2.0)).plain()).method.rate == 2.0
    assert Renamed(method=Rate()).num_steps == 1
    assert not recwarn.list


@pytest.mark.filterwarnings("ignore:.*is now")
@pytest.mark.parametrize(
    "values",
    [
        {"speed": 1.0, "method": {"rate": 2.0}},
        {"speed": 1.0, "method": Rate()},
        {"count": 1, "num_steps": 2},
    ],
)
def test_old_and_present_name_together_are_refused(values):
    with pytest.raises(ValidationError, match=r"is the old name of .* both are given: leave the old one out"):
        Renamed.model_validate(values)


def test_a_nested_field_is_named_with_the_one_that_holds_it() -> None:
    class Outer(BaseConfig):
        inner: Inner = Inner()
        arguments: dict[str, float] = {}

    with pytest.raises(ValidationError) as caught:
        Outer().derive(inner={"rate": 0.0})
    assert readable(caught.value, "module") == "module.inner.rate: Input should be greater than 0, got 0.0"
    with pytest.raises(ValidationError, match="x: must be a finite number"):
        Outer(arguments={"x": float("inf")})
