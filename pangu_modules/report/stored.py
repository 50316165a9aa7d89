"""A run's report as data beside its pages, so that what is measured later joins it without losing what it says."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pangu_modules.common.files import write_atomically
from pangu_modules.report.origin import Origin
from pangu_modules.report.run_report import ReportFigure, RunReport
from pangu_modules.report.tables import ReportTable

STORED = "report.json"
FIGURES = "figures"


def store_report(report: RunReport, folder: Path) -> None:
    """Write ``report.json``: all of a report but its figures, which are files of their own."""
    plain = {name: value for name, value in vars(report).items() if name not in ("origin", "tables", "figures")}
    plain["origin"] = asdict(report.origin)
    plain["tables"] = [asdict(table) for table in report.tables]
    plain["figures"] = [{"caption": figure.caption, "file_name": figure.file_name} for figure in report.figures]
    write_atomically(folder / STORED, json.dumps(plain, indent=1) + "\n")


def stored_report(folder: Path) -> RunReport:
    """Return the report that `store_report` has written in a run's folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    file = folder / STORED
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        tables, figures, origin = (plain.pop(name) for name in ("tables", "figures", "origin"))
        report = RunReport(**plain, origin=Origin(**origin))
        report.tables += TypeAdapter(list[ReportTable]).validate_python(tables)
        for figure in figures:
            name = Path(figure["file_name"]).name  # inside the folder, whatever the file says
            report.figures.append(ReportFigure((folder / FIGURES / name).read_bytes(), figure["caption"], name))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} is damaged ({reason}): remove it; the end of a fit writes it again") from error
    return report
