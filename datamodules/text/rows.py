"""Rows of text data: the text of one, and what becomes of rows that cannot be used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

OnBad = Literal["error", "skip"]
SHOWN = 40  # characters of a wrong value that a message repeats


class BadRows:
    """Stops at the first row that cannot be used, or counts them all.

    Args:
        on_bad_row: "error" or "skip".
    """

    def __init__(self, on_bad_row: OnBad = "error") -> None:
        self.on_bad_row = on_bad_row
        self.count = 0
        self.first = ""

    def meet(self, message: str, cause: Exception | None = None) -> None:
        """Take note of a row.

        Args:
            message: names row and fault.
            cause: the error behind it.

        Raises:
            ValueError: rows are not to be skipped.
        """
        if self.on_bad_row == "error":
            raise ValueError(f"{message} (on_bad_row=skip leaves such rows out)") from cause
        self.first = self.first or message
        self.count += 1

    def report(self, source: str, rows: int) -> None:
        """Say how many of a source's `rows` are left out, and why the first one is."""
        if self.count:
            rank_zero_warn(f"{source}: {self.count} of {rows} rows left out (on_bad_row=skip); the first: {self.first}")


def row_text(row: Any, field: str, where: str) -> str:
    """Return the text of a row, empty where it is null (None, or the NaN that tables write for it).

    Args:
        row: a mapping with `field`.
        field: name of the text.
        where: names the row in errors, e.g. ``"a.jsonl, line 3"``.

    Raises:
        ValueError: there is no such field, or it holds anything but text.
    """
    value = checked_row(row, field, where)[field]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str):
        raise ValueError(
            f"{where}: {field!r} holds no text but {shown(value)}; name a field of text in the configuration"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{where}: {field!r} holds half of a surrogate pair (character {value!r:.{SHOWN}}), which is no text; "
            "write it anew"
        ) from None
    return value


def without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table's row without the nulls inside its fields; the fields themselves stay.

    In a table all messages of a column have the same fields, so that those that a message does not have are null: they
    would be written as arguments that no call has.
    """
    return {name: _pruned(value) for name, value in row.items()}


def _pruned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _pruned(part) for name, part in value.items() if part is not None}
    return [_pruned(part) for part in value] if isinstance(value, list) else value


def checked_row(row: Any, field: str, where: str) -> Mapping[str, Any]:
    """Return `row`, a mapping that has `field`, or raise a ValueError: the row itself if it is one."""
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, Mapping) or field not in row:
        known = ", ".join(row) if isinstance(row, Mapping) else shown(row)
        raise ValueError(f"{where} has no field {field!r}, only: {known}; name the right one in the configuration")
    return row


def shown(value: Any) -> str:
    """Return a wrong value for a message: its kind, and its beginning.

    >>> shown([1, 2])
    'a list: [1, 2]'
    """
    kinds = {"dict": "an object", "list": "a list", "str": "a text", "int": "a number", "float": "a number"}
    kind = kinds.get(type(value).__name__, f"a {type(value).__name__}")
    text = repr(value)
    return f"{kind}: {text[:SHOWN]}{'...' if len(text) > SHOWN else ''}"
