"""Tables of results: rows become text with units once, and are then printed, or written as Markdown or HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pangu_modules.common.names import nearest
from pangu_modules.report.visible import visible

if TYPE_CHECKING:
    from rich.console import Console

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """Heading of a table's column: title, unit, and digits after the point (None: four significant digits)."""

    title: str
    unit: str = ""
    digits: int | None = None

    @property
    def heading(self) -> str:
        """The title with its unit, e.g. ``loss (nats)``."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, value: Any) -> str:
        """Return a cell's text: numbers with thousands separators, a dash for None and for a missing value."""
        if value is None:
            return "-"
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, int):
            return f"{value:,}"
        if isinstance(value, float):
            return format_float(value, self.digits)
        return str(value)


@dataclass(frozen=True)
class ReportTable:
    """A titled table whose cells are text; `numeric` says which columns are aligned to the right."""

    title: str
    headings: list[str]
    cells: list[list[str]]
    numeric: list[bool]


def table_of(rows: Iterable[Row], columns: Mapping[str, Column | str] | None = None, title: str = "") -> ReportTable:
    """Turn rows into a table of text.

    Args:
        rows: mappings from column key to value; a missing value reads as a dash.
        columns: key -> `Column` or plain title, in the order of printing; None takes the keys of the rows as titles.
        title: the table's title.

    Raises:
        ValueError: a row has a key that `columns` does not list, so that its value would be lost.
    """
    rows = list(rows)
    heads = columns_of(rows, columns, title)
    cells = [[head.text(row.get(key)) for key, head in heads.items()] for row in rows]
    numeric = [all(_is_number(row.get(key)) for row in rows) for key in heads]
    return ReportTable(title, [head.heading for head in heads.values()], cells, numeric)


def columns_of(rows: Iterable[Row], columns: Mapping[str, Column | str] | None, title: str) -> dict[str, Column]:
    """Return the `Column` of each key; arguments and error as in `table_of`."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    given: Mapping[str, Column | str] = columns if columns is not None else {key: key for key in keys}
    for key in keys:
        if key not in given:
            raise ValueError(
                f"table {title!r}: no column for {key!r}.{nearest(key, given)} Columns: {', '.join(given)}"
            )
    return {key: head if isinstance(head, Column) else Column(head) for key, head in given.items()}


def terminal_table(
    rows: Iterable[Row],
    columns: Mapping[str, Column | str] | None = None,
    title: str = "",
    console: Console | None = None,
) -> None:
    """Print rows as a table on the terminal (or on `console`); arguments as in `table_of`."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = table_of(rows, columns, title)
    printed = Table(title=Text(visible(table.title)) if table.title else None, box=SIMPLE_HEAD, title_justify="left")
    for heading, numeric in zip(table.headings, table.numeric, strict=True):
        printed.add_column(Text(visible(heading)), justify="right" if numeric else "left", overflow="fold")
    for row in table.cells:
        printed.add_row(*(Text(visible(cell)) for cell in row))
    (console or Console()).print(printed)


def format_float(value: float, digits: int | None = None) -> str:
    """Return a float with `digits` after the point, or with four significant digits (an exponent only where long)."""
    if not math.isfinite(value):
        return str(value)
    if digits is not None:
        return f"{value:,.{digits}f}"
    rounded = f"{value:.3e}"
    exponent = int(rounded.partition("e")[2])
    return f"{value:,.{max(0, 3 - exponent)}f}" if -4 <= exponent < 7 else rounded


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
