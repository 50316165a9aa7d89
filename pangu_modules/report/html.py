"""The HTML form of a run's report: one page with its style and figures inside, which loads nothing when opened."""

from __future__ import annotations

import base64
from html import escape

from pangu_modules.report.run_report import ReportFigure, RunReport
from pangu_modules.report.tables import ReportTable

STYLE = """
:root { color-scheme: light dark; }
:root { --ground: #ffffff; --panel: #f5f6f8; --text: #1d2129; --faint: #5a6270; --line: #d8dce3; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #16181d; --panel: #20232a; --text: #e4e7ec; --faint: #a0a8b5; --line: #3a404b; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 1.5rem 1rem 3rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 0.75rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 0.5rem; }
p { margin: 0.25rem 0; max-width: 72ch; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; width: fit-content; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: 0.35rem 0.8rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { background: var(--panel); font-weight: 600; vertical-align: bottom; }
td { white-space: nowrap; }
td.text { white-space: normal; min-width: 20ch; max-width: 44ch; }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; }
.figures { display: grid; gap: 1rem; margin-top: 2rem; }
.figures { grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; background: var(--panel); }
figure img { display: block; width: 100%; height: auto; background: #ffffff; }
figcaption { padding: 0.4rem 0.8rem; color: var(--faint); font-size: 0.9rem; }
.settings { display: flex; flex-wrap: wrap; gap: 0 2.5rem; }
.settings > section { max-width: 100%; }
pre { margin: 0; padding: 0.8rem; background: var(--panel); overflow-wrap: normal; }
pre { font: 13px/1.45 ui-monospace, monospace; }
details .scroll { width: auto; }
summary { cursor: pointer; font-size: 1.1rem; font-weight: 600; margin: 2rem 0 0.5rem; }
"""

# The policy makes the promise checkable: a browser refuses whatever the page would load from elsewhere.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render_html(report: RunReport) -> str:
    """Return the report as one HTML page, every text escaped, figures as base64 PNGs."""
    body = [f"<h1>{escape(report.title)}</h1>", *(f"<p>{escape(line)}</p>" for line in report.summary)]
    body += [_section(table) for table in report.tables]
    if report.figures:
        body.append(f'<div class="figures">{"".join(_figure(figure) for figure in report.figures)}</div>')
    settings = [_section(table) for table in report.setting_tables()]
    if settings:
        body.append(f'<div class="settings">{"".join(settings)}</div>')
    if report.config_yaml:
        code = f'<div class="scroll"><pre>{escape(report.config_yaml.rstrip())}</pre></div>'
        body.append(f"<details><summary>Configuration</summary>{code}</details>")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(table: ReportTable) -> str:
    title = f"<h2>{escape(table.title)}</h2>" if table.title else ""
    return f"<section>{title}{_table(table)}</section>"


def _table(table: ReportTable) -> str:
    aligned = [' class="number"' if numeric else "" for numeric in table.numeric]
    head = "".join(f"<th{side}>{escape(text)}</th>" for side, text in zip(aligned, table.headings, strict=True))
    rows = ["".join(_cell(side, text) for side, text in zip(aligned, row, strict=True)) for row in table.cells]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    # A box that scrolls must be reachable by keyboard.
    return (
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n'
        "</table></div>"
    )


def _cell(side: str, text: str) -> str:
    # Only sentences wrap; names and numbers are easier to compare unbroken.
    kind = side or (' class="text"' if len(text) > 40 else "")
    return f"<td{kind}>{escape(text)}</td>"


def _figure(figure: ReportFigure) -> str:
    data = base64.b64encode(figure.png).decode("ascii")
    caption = escape(figure.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )
