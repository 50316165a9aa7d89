"""Errors that the command line answers with a short message and exit code 2, without a traceback."""

from __future__ import annotations

from pydantic import ValidationError


class UsageError(ValueError):
    """A value given by the user cannot be used; the message names it, what is allowed, and the remedy."""


def readable(error: ValidationError, prefix: str = "") -> str:
    """Return a pydantic error as ``field: what is allowed, got value``, one line per field."""
    lines = []
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"])
        name = ".".join(part for part in (prefix, field) if part)
        message = problem["msg"].removeprefix("Value error, ")
        got = "" if problem["type"] in ("value_error", "missing") else f", got {problem['input']!r}"
        lines.append(f"{name}: {message}{got}" if name else f"{message}{got}")
    return "\n".join(lines)
