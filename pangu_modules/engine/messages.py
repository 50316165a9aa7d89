"""The parser's errors, rewritten as one line that names the option, the value and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pangu_modules.common.names import nearest

UNKNOWN = re.compile(
    r"unrecognized arguments: (?P<flag>--[^\s=]+)"
    r"|Group '(?P<group>[^']+)' does not accept option '(?P<key>[^']+)'"
    r"|Option '(?P<option>[^']+)' is not accepted"
)
BOUNDS = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
"""pydantic's kinds of errors that name a bound, and what its types call the bound."""


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
    key = _key(text)
    if "Unable to load config" in text:
        wrong = text.partition("Unable to load config ")[2].splitlines()[0]
        return (
            f"--{key}: expected a YAML file of its fields, or the fields one by one (--{key}.NAME VALUE), got {wrong}"
        )
    if "Subclasses are disabled" in text:
        return "class_path: classes are the recipe's, written in Python; give the fields alone"
    name = f"--{key}: " if key else ""
    value = re.search(r"(?:Got value|Given value): (.*)", text)
    got = f", got {value[1].strip()!r}" if value else ""
    return f"{name}{_allowed(text)}{got}"


def _key(text: str) -> str:
    """Return the option the error is about: the first key, and the keys inside it, which are indented deeper."""
    parts: list[str] = []
    deepest = -1
    for indentation, key in re.findall(r'^( *).*?[Kk]ey "([^"]+)"', text, flags=re.MULTILINE):
        if len(indentation) > deepest:
            if ".".join(parts) != key:  # one that is named twice
                parts.append(key)
            deepest = len(indentation)
    return ".".join(parts)


def _allowed(text: str) -> str:
    """Return the part of the error that says what is allowed."""
    constraint = re.search(r"\n\s+([^\n]*?) \[type=(\w+)", text)  # pydantic's line
    if constraint:
        # The parser cuts the value given out of the line, and with it a bound that is equal: the type still tells it.
        bound = re.search(rf"\b{BOUNDS[constraint[2]]}=([^,)\]]+)", text) if constraint[2] in BOUNDS else None
        return f"{constraint[1]} {bound[1]}" if bound and constraint[1].endswith(("than", "to")) else constraint[1]
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
