"""``metrics.csv``: what a run has logged, a row at once, over all its resumes.

Lightning's CSVLogger writes every hundredth step, so that a kill loses rows, and deletes the file of the run that it
resumes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from pangu_modules.common.files import write_atomically

Row = Mapping[str, Any]


class MetricsFile(Logger):
    """Appends to ``metrics.csv``; columns are the metrics' names and ``step``, in order of their names.

    Args:
        folder: where the file lies.
        kept: rows that a resumed run goes on from; the file is replaced by them.
    """

    def __init__(self, folder: Path, kept: Iterable[Row] = ()) -> None:
        super().__init__()
        self._folder = folder
        self._kept = list(kept)
        self._columns: list[str] | None = None  # None until the first row: another process may write the file
        self.rows = len(self._kept)

    @property
    def path(self) -> Path:
        """The file."""
        return self._folder / "metrics.csv"

    @property
    def name(self) -> str:
        """No name: the folder is the run's own."""
        return ""

    @property
    def version(self) -> str:
        """No version, for the same reason."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder."""
        return str(self._folder)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Write nothing: ``config.yaml`` holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append a row.

        Raises:
            OSError: the row cannot be written.
        """
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        row["step"] = self.rows if step is None else step
        if self._columns is None:
            self._write(self._kept)
            self._kept = []
        assert self._columns is not None
        if set(row) <= set(self._columns):
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)
        else:
            self._write([*read_rows(self.path), row])
        self.rows += 1

    def _write(self, rows: list[Row]) -> None:
        self._columns = sorted({name for row in rows for name in row})
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        if rows:
            writer.writeheader()
            writer.writerows(rows)
        if not self._folder.is_dir():  # not made again: a run whose folder is removed shall end
            raise FileNotFoundError(f"no folder {self._folder}")
        write_atomically(self.path, text.getvalue())


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a ``metrics.csv``, without the cells that are empty; none of a file that is not there.

    A last line that a kill or a full disk has cut off is left out, and so are lines that are no text.
    """
    if not path.is_file():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0].replace(b"\0", b"").decode("utf-8", errors="replace")
    rows = csv.DictReader(io.StringIO(whole, newline=""), restval="")
    return [{name: value for name, value in row.items() if name and value} for row in rows]


def rows_before(path: Path, checkpoint: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the rows of a run that a resume from `checkpoint` will not log again.

    `ResumeCheckpoint` stores how many rows there were when it saved. After a batch or an epoch Lightning saves first
    and then logs, and a resume does not come there again; after a validation it logs the epoch's values again.
    """
    rows, step = read_rows(path), int(checkpoint["global_step"])
    mark = checkpoint.get("callbacks", {}).get("resume_checkpoint") or {}
    counted = mark.get("step") == step and isinstance(mark.get("rows"), int)  # else another callback's checkpoint
    known = mark["rows"] if counted else 0
    later = [] if counted and mark.get("logs_again") else rows[known:]
    return rows[:known] + [row for row in later if row.get("step", "").isdigit() and int(row["step"]) < step]
