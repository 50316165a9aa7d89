"""No field of any configuration takes what cannot be meant, or holds a secret."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import Field, ValidationError

from pangu_modules.common.config import PLAIN_NAME, Config, caller_only
from pangu_modules.common.values import LARGEST, check_address


class Inner(Config):
    server: str | None = Field(None, json_schema_extra=caller_only())
    size: int = 1


class Everything(Config):
    rate: float = 0.1
    rates: tuple[float, ...] = ()
    count: int = 3
    name: str = "x"
    source: str = ""
    free: dict[str, Any] = {}
    pretrained: bool | str = Field(True, json_schema_extra=caller_only(False))
    kernel: str = Field("sdpa", json_schema_extra=PLAIN_NAME)
    inner: Inner | None = Inner()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rate": math.inf}, "a finite number"),
        ({"rate": math.nan}, "a finite number"),
        ({"rate": 1e300}, "magnitude"),
        ({"rates": (0.9, math.nan)}, "a finite number"),
        ({"count": 10**30}, "at most 4294967295, got 1e"),
        ({"count": -(10**400)}, "at most 4294967295, got a larger one"),
        ({"name": ""}, "must not be empty"),
        ({"name": " \n"}, "must not be empty"),
        ({"name": "a\0b"}, "no text"),
        ({"free": {"size": 10**30}}, "at most 4294967295"),
        ({"free": {"rate": math.inf}}, "a finite number"),
        ({"free": {"": 1}}, "without a name"),
    ],
)
def test_refuses_what_cannot_be_meant(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said) as caught:
        Everything(**fields)
    assert caught.value.errors()[0]["loc"] == tuple(fields)


def test_takes_what_can_be_meant() -> None:
    limits = {"time_step_limit": [0.0, math.inf], "name": "", "size": LARGEST}
    assert Everything(count=LARGEST, rate=-1e30, source="", free=limits).free == limits


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "https://me:secret1@host/v1"},
        {"name": "https://host/v1?token=secret1"},
        {"name": "hf_secret1secret1"},
        {"free": {"init_args": {"api_key": "secret1"}}},
    ],
)
def test_refuses_a_secret_without_repeating_it(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="environment variable") as caught:
        Everything(**fields)
    assert "secret1" not in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    "address",
    [
        "ftp://host",
        "host:8000",
        "http://",
        "http://me@host",
        "http://host?a=b",
        "http://host#a",
        "http://a b",
        "http://[x",
    ],
)
def test_an_address_is_scheme_host_and_path(address: str) -> None:
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:8000/v1"):
        check_address(address, remedy="elsewhere")
    check_address("http://127.0.0.1:8000/v1", remedy="elsewhere")


def test_stored_data_opens_nothing() -> None:
    stored = Everything(pretrained="/etc/x.pth", count=5, inner=Inner(server="http://host", size=7)).plain()
    assert Everything(**Everything.from_stored(stored)) == Everything(pretrained=False, count=5, inner=Inner(size=7))
    del stored["pretrained"]
    assert Everything(**Everything.from_stored(stored)).pretrained is False, "the default opens a file too"


@pytest.mark.parametrize("place", ["owner/kernel", "hf-hub:x", "./x", "..\\x", "~x"])
def test_stored_data_names_known_things_alone(place: str) -> None:
    with pytest.raises(ValueError, match="only the caller"):
        Everything.from_stored({"kernel": place})
