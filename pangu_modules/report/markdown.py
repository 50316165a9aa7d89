"""The Markdown form of a run's report; its figures are files beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pangu_modules.report.run_report import RunReport
from pangu_modules.report.tables import ReportTable
from pangu_modules.report.visible import visible


def render_markdown(report: RunReport) -> str:
    """Return the report as Markdown text; figures are linked as ``figures/<name>.png``."""
    parts = [f"# {escape(report.title)}", *(escape(line) for line in report.summary)]
    parts += [_titled(table) for table in report.tables]
    for figure in report.figures:
        caption = escape(figure.caption)
        parts.append(f"![{caption}](figures/{figure.file_name})\n\n*{caption}*")
    if report.origin.command:
        parts.append(_code("Command", report.origin.command))
    if report.origin.next_commands:
        parts.append(_code("Next commands", "\n".join(report.origin.next_commands)))
    parts += [_titled(table) for table in report.setting_tables()]
    if report.config_yaml:
        parts.append(_code("Configuration", report.config_yaml, language="yaml"))
    return "\n\n".join(parts) + "\n"


def markdown_table(table: ReportTable) -> str:
    """Return a table in GitHub's Markdown, numbers to the right, without its title."""
    lines = [_line(escape(heading) for heading in table.headings)]
    lines.append(_line("---:" if numeric else "---" for numeric in table.numeric))
    lines += [_line(escape(cell) for cell in row) for row in table.cells]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Return `text` as one line of Markdown that shows it literally, also inside a table cell."""
    text = visible(" ".join(text.split()))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~])", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)|^#", r"\\\g<0>", text)  # inside a word an underscore is literal already


def fence_for(text: str) -> str:
    """Return a code fence longer than any run of backticks in `text`."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)


def _code(title: str, text: str, language: str = "") -> str:
    fence = fence_for(text)
    return f"## {title}\n\n{fence}{language}\n{visible(text.rstrip())}\n{fence}"


def _titled(table: ReportTable) -> str:
    return f"## {escape(table.title)}\n\n{markdown_table(table)}" if table.title else markdown_table(table)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
