"""What no field of any configuration may hold: numbers that cannot be meant, empty names, and secrets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pangu_modules.common.masking import holds_secret, names_secret

LARGEST = 2**32 - 1
"""The largest whole number of a field: that of a seed (Lightning's and NumPy's); no count of samples, tokens or steps
comes near it."""

LARGEST_FLOAT = 1e30
"""The largest magnitude of a real number: its square still is a number in float64."""


def check_value(value: Any, *, may_be_empty: bool = False) -> None:
    """Refuse a value that cannot be meant; lists and mappings are looked into.

    Args:
        value: of a field, as validated.
        may_be_empty: whether the field's text may be empty, which else is a forgotten name.

    Raises:
        ValueError: it says what is allowed. A secret is not in its message.
    """
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"a whole number has a magnitude of at most {LARGEST}, got {_short(value)}")
    if isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:
        allowed = "a finite number" if not math.isfinite(value) else f"a number of magnitude {LARGEST_FLOAT:g} at most"
        raise ValueError(f"must be {allowed}, got {value}")
    if isinstance(value, str):
        _check_text(value, may_be_empty)
    elif isinstance(value, Mapping):
        _check_mapping(value)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            check_value(item)


def check_free_value(value: Any) -> None:
    """Refuse what cannot be meant among another library's arguments, where a text may be empty and a limit infinite.

    mamba's ``time_step_limit`` ends at infinity: inside lists, real numbers are that library's to judge.

    Raises:
        ValueError: as `check_value`.
    """
    if isinstance(value, Mapping):
        _check_names(value)
        for name, item in value.items():
            try:
                check_free_value(item)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    elif isinstance(value, list | tuple):
        for item in value:
            if not isinstance(item, float):
                check_free_value(item)
    else:
        check_value(value, may_be_empty=True)


def check_address(address: str, *, remedy: str) -> None:
    """Refuse what is no plain address of a server; it is not repeated where it may hold a password.

    Args:
        address: ``http://host:port/path``.
        remedy: where a password belongs.

    Raises:
        ValueError: it has another scheme, no host, a user or password, or anything after a question mark.
    """
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"is no address: {error}; give one like http://127.0.0.1:8000/v1") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"is an address without user, password and query, e.g. http://127.0.0.1:8000/v1: {remedy}")
    if parts.scheme not in ("http", "https") or not host or any(character.isspace() for character in address):
        raise ValueError(f"is an address like http://127.0.0.1:8000/v1, got {address!r}")


def _check_text(text: str, may_be_empty: bool) -> None:
    if not text.strip() and not may_be_empty:
        raise ValueError("must not be empty: give a name, or null where the field has none")
    if not text.isprintable() and any(ord(character) < 32 and character not in "\t\n\r" for character in text):
        raise ValueError(f"holds a character that is no text, got {text!r}")
    if holds_secret(text):
        raise ValueError(
            "holds a password, token or key, and configurations are written to config.yaml, reports and checkpoints: "
            "keep it in an environment variable (generation.api_key_variable names one)"
        )


def _check_mapping(values: Mapping[Any, Any]) -> None:
    _check_names(values)
    for name, item in values.items():
        try:
            check_value(item)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def _check_names(values: Mapping[Any, Any]) -> None:
    for name, item in values.items():
        if not str(name).strip():
            raise ValueError("has an entry without a name")
        if isinstance(item, str) and item and names_secret(str(name)):
            raise ValueError(
                f"{name!r} is a secret, and configurations are written to config.yaml and reports: keep it in the "
                "environment variable that its library reads"
            )


def _short(number: int) -> str:
    return str(number) if abs(number) < 10**20 else f"{float(number):.0e}" if abs(number) < 10**300 else "a larger one"
