"""The HTML form of a run's report: one page with its style and figures inside, which loads nothing when opened."""

from __future__ import annotations

import base64
from functools import cache
from typing import TYPE_CHECKING, Any

from pangu_modules.report.run_report import RunReport
from pangu_modules.report.visible import visible

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATE = "report.html.jinja"


def render_html(report: RunReport) -> str:
    """Return the report as one HTML page, every text escaped, figures as base64 PNGs."""
    return _environment().get_template(TEMPLATE).render(report=report)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # What the report holds is only ever a value, never template text, so nothing in it is executed; `autoescape` makes
    # each value text of the page.
    environment = Environment(
        loader=PackageLoader("pangu_modules", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    return environment


def _finalize(value: Any) -> Any:
    """Show control characters of plain text; what a macro returned (Markup) has been through here already."""
    return visible(value) if type(value) is str else value
