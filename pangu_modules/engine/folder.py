"""Run folders ``runs/<recipe>/<version>/``: where a run's configuration, checkpoints, metrics and results lie."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pangu_modules.common.files import write_atomically

RUNS = Path("runs")
RUN_DIR_VARIABLE = "PANGU_RUN_DIR"  # set by the first process of a run, so that those it launches share its folder


def to_yaml(plain: Mapping[str, Any]) -> str:
    """Return plain data as YAML in its own order, nulls kept."""
    return yaml.safe_dump(dict(plain), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class RunFolder:
    """One stage's files; a recipe of one stage has them directly in its version's folder."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of ``last.ckpt`` and ``best.ckpt``."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The last checkpoint, written at every epoch's end and when a run is interrupted."""
        return self.checkpoints / "last.ckpt"

    @property
    def metrics(self) -> Path:
        """Metrics over steps, as Lightning's CSVLogger writes them."""
        return self.path / "metrics.csv"

    @property
    def result(self) -> Path:
        """The stage's result; its presence marks the stage as finished."""
        return self.path / "result.json"

    def read_result(self) -> dict[str, Any] | None:
        """Return the stored result, or None while the stage is unfinished."""
        if not self.result.is_file():
            return None
        result: dict[str, Any] = json.loads(self.result.read_text(encoding="utf-8"))
        return result


def versions(recipe: str, root: Path = RUNS) -> list[Path]:
    """Return the version folders of a recipe, oldest first."""
    found = [path for path in (root / recipe).glob("version_*") if path.name.removeprefix("version_").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("version_")))


def new_version(recipe: str, root: Path = RUNS) -> Path:
    """Create and return the next version's folder; processes launched by this one get the same."""
    if RUN_DIR_VARIABLE in os.environ:
        return Path(os.environ[RUN_DIR_VARIABLE])
    existing = versions(recipe, root)
    number = int(existing[-1].name.removeprefix("version_")) + 1 if existing else 0
    while True:
        path = root / recipe / f"version_{number}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:  # another run of the recipe was faster
            number += 1
            continue
        os.environ[RUN_DIR_VARIABLE] = str(path.resolve())
        return path


def set_metrics_aside(metrics: Path) -> Path | None:
    """Move ``metrics.csv`` out of the logger's way before a resume: CSVLogger deletes a file that it finds."""
    if not metrics.is_file():
        return None
    aside = metrics.with_name("metrics_before_resume.csv")
    merge_metrics(aside, metrics, aside)
    metrics.unlink()
    return aside


def merge_metrics(earlier: Path, later: Path, target: Path) -> None:
    """Write the rows of both files to `target`; where steps overlap, the later run's rows win."""
    first, second = _read_rows(earlier), _read_rows(later)
    start = min((int(row["step"]) for row in second if row.get("step")), default=None)
    kept = first if start is None else [row for row in first if not row.get("step") or int(row["step"]) < start]
    rows = [*kept, *second]
    if not rows:
        return
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [",".join(columns)]
    lines += [",".join(row.get(column) or "" for column in columns) for row in rows]
    write_atomically(target, "\n".join(lines) + "\n")


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
