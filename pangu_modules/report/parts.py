"""Parts of a run's report that callbacks write into the run's folder: tables and figures, read when the run ends.

They lie on disk because a run may be resumed: what an earlier process found must be in the report of the last one.
A table is stored as records: rows of plain values under keys, and beside them how each column is printed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pangu_modules.common.files import write_atomically
from pangu_modules.report.run_report import RunReport, figure_to_png
from pangu_modules.report.tables import Column, Row, columns_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = "report_parts"


@dataclass(frozen=True)
class TablePart:
    """A table: its title, the columns by key in the order of printing, and rows of plain values under those keys."""

    title: str
    columns: Mapping[str, Column]
    rows: Sequence[Row]


def add_table(
    folder: str | Path, name: str, title: str, rows: Sequence[Row], columns: Mapping[str, Column | str] | None = None
) -> None:
    """Add a table to the report of the run in `folder`.

    Args:
        folder: the run's folder, ``trainer.default_root_dir`` in a recipe.
        name: file name without ending; a later table of the same name replaces it. Parts appear in order of names.
        title: heading of the table.
        rows: key -> plain value (what JSON can hold).
        columns: key -> how it is printed; None takes the keys as titles.

    Raises:
        ValueError: a row has a key that `columns` does not list, so that its value would be lost.
    """
    described = {key: asdict(column) for key, column in columns_of(rows, columns, title).items()}
    content = {"title": title, "columns": described, "rows": [dict(row) for row in rows]}
    write_atomically(Path(folder) / PARTS / f"{name}.json", json.dumps(content, indent=1) + "\n")


def read_table(folder: str | Path, name: str) -> TablePart:
    """Return the table `name` as it was added to the report of the run in `folder`.

    Raises:
        FileNotFoundError: there is none.
    """
    content = json.loads((Path(folder) / PARTS / f"{name}.json").read_text(encoding="utf-8"))
    columns = {key: Column(**fields) for key, fields in content["columns"].items()}
    return TablePart(content["title"], columns, content["rows"])


def add_figure(folder: str | Path, name: str, caption: str, figure: Figure) -> None:
    """Add a figure to the report of the run in `folder`; arguments as for `add_table`."""
    parts = Path(folder) / PARTS
    write_atomically(parts / f"{name}.txt", caption + "\n")  # first: a process killed here must leave no bare figure
    write_atomically(parts / f"{name}.png", figure_to_png(figure))


def add_parts(folder: str | Path, report: RunReport, prefix: str = "") -> None:
    """Add the parts in `folder` to `report`; `prefix` (a stage's name) goes before titles and captions."""
    start = f"{prefix}: " if prefix else ""
    for path in sorted((Path(folder) / PARTS).glob("*")):
        if path.suffix == ".json":
            table = read_table(folder, path.stem)
            report.add_table(start + table.title, table.rows, table.columns)
        elif path.suffix == ".png":
            caption = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
            report.add_figure(path.read_bytes(), start + caption)
