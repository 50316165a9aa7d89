"""Parts of a run's report that callbacks leave in the run's folder: tables and figures, collected when it ends.

They lie on disk because a run may be resumed: what an earlier process found must be in the report of the last one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_modules.common.files import write_atomically
from pangu_modules.report.run_report import RunReport, figure_to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = "report_parts"


def leave_table(folder: str | Path, name: str, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Leave a table for the report of the run in `folder`.

    Args:
        folder: the run's folder, ``trainer.default_root_dir`` in a recipe.
        name: file name without ending; a later table of the same name replaces it. Parts appear in order of names.
        title: heading of the table.
        rows: column title -> plain value.
    """
    content = {"title": title, "rows": [dict(row) for row in rows]}
    write_atomically(Path(folder) / PARTS / f"{name}.json", json.dumps(content, indent=1) + "\n")


def leave_figure(folder: str | Path, name: str, caption: str, figure: Figure) -> None:
    """Leave a figure for the report of the run in `folder`; arguments as for `leave_table`."""
    write_atomically(Path(folder) / PARTS / f"{name}.png", figure_to_png(figure))
    write_atomically(Path(folder) / PARTS / f"{name}.txt", caption + "\n")


def collect_parts(folder: str | Path, report: RunReport, prefix: str = "") -> None:
    """Add the parts left in `folder` to `report`; `prefix` (a stage's name) goes before titles and captions."""
    start = f"{prefix}: " if prefix else ""
    for path in sorted((Path(folder) / PARTS).glob("*")):
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            report.add_table(start + content["title"], content["rows"])
        elif path.suffix == ".png":
            caption = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
            report.add_figure(path.read_bytes(), start + caption)
