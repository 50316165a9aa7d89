"""The files of a run's report: one HTML page that loads nothing, and Markdown with its figures beside it."""

from __future__ import annotations

from pathlib import Path

from pangu_modules.common.files import write_atomically
from pangu_modules.report.html import render_html
from pangu_modules.report.markdown import render_markdown
from pangu_modules.report.run_report import RunReport


def write_report(report: RunReport, folder: str | Path) -> tuple[Path, Path]:
    """Write ``report.html``, ``report.md`` and ``figures/*.png``, each atomically.

    Args:
        report: what to write.
        folder: the run's folder; created if needed.

    Returns:
        The paths of the HTML page and of the Markdown file.
    """
    folder = Path(folder)
    for figure in report.figures:
        write_atomically(folder / "figures" / figure.file_name, figure.png)
    markdown = write_atomically(folder / "report.md", render_markdown(report))
    page = write_atomically(folder / "report.html", render_html(report))
    return page, markdown
