"""The parser's errors, rewritten as one line that names the option, the value and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pangu_modules.names import nearest

UNKNOWN = re.compile(
    r"unrecognized arguments: (?P<flag>--[^\s=]+)"
    r"|Group '(?P<group>[^']+)' does not accept option '(?P<key>[^']+)'"
    r"|Option '(?P<option>[^']+)' is not accepted"
)


def short_message(text: str, options: Sequence[str]) -> str:
    """Return the parser's error `text` in one line.

    Args:
        text: what jsonargparse says; its wording differs by the kind of error.
        options: all option strings, to suggest the nearest for an unknown one.
    """
    unknown = UNKNOWN.search(text)
    if unknown:
        flag = unknown["flag"] or "--" + (unknown["option"] or f"{unknown['group']}.{unknown['key']}")
        return f"unknown option {flag}.{nearest(flag, options)}"
    key = re.search(r'[Kk]ey "([^"]+)"', text)
    name = f"--{key[1]}: " if key else ""
    value = re.search(r"(?:Got value|Given value): (.*)", text)
    got = f", got {value[1].strip()!r}" if value else ""
    return f"{name}{_allowed(text)}{got}"


def _allowed(text: str) -> str:
    """Return the part of the error that says what is allowed."""
    constraint = re.search(r"\n\s+([^\n]*?) \[type=", text)  # pydantic's line
    if constraint:
        return constraint[1]
    union = re.search(r"Subtypes: \[(.*)\]", text)
    if union:
        return f"expected one of {readable_types(union[1])}"
    lines = [line.strip() for line in text.splitlines() if line.strip() and "Parser key" not in line]
    return readable_types(re.sub(r"\.? Got value: .*", "", "; ".join(lines[:2])))


def readable_types(text: str) -> str:
    """Return a list of types as text: literals by their values, classes by their names, None as null.

    >>> readable_types("typing.Literal['a', 'b'], <class 'float'>, <class 'NoneType'>")
    "'a', 'b', float, null"
    """
    text = re.sub(r"(?:typing\.)?Literal\[([^\]]*)\]", r"\1", text)
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text)
    return text.replace("NoneType", "null").replace("typing.", "")
