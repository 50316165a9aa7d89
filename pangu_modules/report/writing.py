"""The files of a run's report: one HTML page that loads nothing, Markdown with its figures beside it, and the data."""

from __future__ import annotations

from pathlib import Path

from pangu_modules.common.files import write_atomically
from pangu_modules.report.html import render_html
from pangu_modules.report.markdown import render_markdown
from pangu_modules.report.run_report import RunReport
from pangu_modules.report.stored import FIGURES, store_report


def write_report(report: RunReport, folder: str | Path) -> tuple[Path, Path]:
    """Write ``report.html``, ``report.md``, ``figures/*.png`` and (for `stored_report`) ``report.json``, each atomic.

    Args:
        report: what to write.
        folder: the run's folder; created if needed.

    Returns:
        The paths of the HTML page and of the Markdown file.
    """
    folder = Path(folder)
    for figure in report.figures:
        write_atomically(folder / FIGURES / figure.file_name, figure.png)
    markdown = write_atomically(folder / "report.md", render_markdown(report))
    page = write_atomically(folder / "report.html", render_html(report))
    store_report(report, folder)
    return page, markdown
