"""RunReport: what a run reports, as data; `pangu_modules.report.writing` makes files of it.

Needs neither torch nor lightning; matplotlib and rich are imported where something is drawn or printed.
"""

from __future__ import annotations

import io
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING

from pangu_modules.report.curves import Axis, learning_curves
from pangu_modules.report.origin import Origin
from pangu_modules.report.tables import Column, ReportTable, Row, table_of, terminal_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Axis", "Column", "RunReport", "collect_versions", "figure_to_png", "learning_curves", "terminal_table"]

WIDE = 1100  # pixels: at two pixels a point, more than the half page that a figure gets beside another
PNG_START = b"\x89PNG\r\n\x1a\n"
PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "timm", "transformers", "peft", "pydantic", "numpy")


@dataclass(frozen=True)
class ReportFigure:
    """A figure as PNG bytes, with its caption and the file name it gets beside the Markdown report."""

    png: bytes
    caption: str
    file_name: str

    @property
    def wide(self) -> bool:
        """Whether the figure takes the page's whole width."""
        return int.from_bytes(self.png[16:20], "big") > WIDE  # where every PNG holds its width in pixels


@dataclass
class RunReport:
    """What a run reports. Fill it, then give it to `write_report`.

    Args:
        title: heading of the report.
        summary: lines below the title, each a paragraph.
        config_yaml: the complete configuration as YAML text.
        versions: package or program -> version (see `collect_versions`).
        seeds: what was seeded (a stage's name) -> its seed.
        seconds: stage -> wall-clock seconds.
        origin: command, commit and machine, and the commands that use the run.
    """

    title: str
    summary: Sequence[str] = ()
    config_yaml: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)
    tables: list[ReportTable] = field(default_factory=list, init=False)
    figures: list[ReportFigure] = field(default_factory=list, init=False)

    def add_table(self, title: str, rows: Iterable[Row], columns: Mapping[str, Column | str] | None = None) -> None:
        """Add a table; see `table_of` for `rows` and `columns`."""
        self.tables.append(table_of(rows, columns, title))

    def add_figure(self, figure: Figure | bytes, caption: str) -> None:
        """Add a matplotlib figure, drawn now, or the bytes of a PNG; the caption is its text for screen readers too.

        Raises:
            ValueError: the bytes are not a PNG.
        """
        png = figure if isinstance(figure, bytes) else figure_to_png(figure)
        if not png.startswith(PNG_START):
            raise ValueError(f"figure {caption!r}: the bytes are not a PNG; save the image as PNG or pass the figure")
        self.figures.append(ReportFigure(png, caption, f"{len(self.figures) + 1:02d}-{slug(caption)}.png"))

    def setting_tables(self) -> list[ReportTable]:
        """Return the tables of time, seeds, machine and versions, as far as they are known."""
        origin = {"commit": self.origin.commit, **self.origin.machine}
        machine = ({"name": name, "value": text} for name, text in origin.items() if text)
        seconds = ({"stage": stage, "seconds": float(value)} for stage, value in self.seconds.items())
        seeds = ({"stage": stage, "seed": str(seed)} for stage, seed in self.seeds.items())
        versions = ({"package": package, "version": version} for package, version in self.versions.items())
        tables = [
            table_of(seconds, {"stage": "stage", "seconds": Column("wall-clock time", "s", 1)}, "Time"),
            table_of(seeds, {"stage": "stage", "seed": "seed"}, "Seeds"),
            table_of(machine, {"name": "what", "value": "value"}, "Code and machine"),
            table_of(versions, {"package": "package", "version": "version"}, "Versions"),
        ]
        return [table for table in tables if table.cells]


def collect_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of those `packages` (PyPI names) that are installed, without importing them."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def figure_to_png(figure: Figure, dots_per_inch: int = 160) -> bytes:
    """Return a matplotlib figure as PNG bytes on a white ground, without the creation date."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def slug(text: str, most: int = 40) -> str:
    """Return `text` as a file name of lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:most].strip("-") or "figure"
