"""Run folders ``runs/<recipe>/<version>/``: where a run's configuration, checkpoints, metrics and results lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from pangu_modules.common.errors import UsageError, readable

T = TypeVar("T")

RUNS = Path("runs")
RUN_DIR_VARIABLE = "PANGU_RUN_DIR"  # the run's place, for processes that Lightning launches from the first one


def to_yaml(plain: Mapping[str, Any]) -> str:
    """Return plain data as YAML in its own order, nulls kept."""
    return yaml.safe_dump(dict(plain), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class RunFolder:
    """One stage's files; a recipe of one stage has them directly in its version's folder."""

    path: Path

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> RunFolder:
        """Return the folder that a checkpoint belongs to."""
        return cls(checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent)

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
        """Metrics over steps, as `MetricsFile` writes them."""
        return self.path / "metrics.csv"

    @property
    def result(self) -> Path:
        """The stage's result; its presence marks the stage as finished."""
        return self.path / "result.json"

    def read_result(self) -> dict[str, Any] | None:
        """Return the stored result, or None while the stage is unfinished.

        Raises:
            UsageError: the file is damaged.
        """
        if not self.result.is_file():
            return None
        try:
            result = json.loads(self.result.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
            raise damaged_result(self.result, error) from error
        if not isinstance(result, dict):
            raise damaged_result(self.result, "no JSON object")
        return result


def stored_result(kind: type[T], folder: RunFolder) -> T | None:
    """Return the result stored in `folder` as `kind`, a dataclass, or None while the stage is unfinished.

    Raises:
        UsageError: the file is damaged.
    """
    plain = folder.read_result()
    try:
        return None if plain is None else TypeAdapter(kind).validate_python(plain)
    except ValidationError as error:
        raise damaged_result(folder.result, readable(error).splitlines()[0]) from error


def damaged_result(path: Path, reason: object) -> UsageError:
    """Return the error of a ``result.json`` that cannot be read."""
    return UsageError(f"{path} is damaged ({reason}): remove it, and the stage goes on from its last checkpoint")


def versions(recipe: str, root: Path = RUNS) -> list[Path]:
    """Return the version folders of a recipe, oldest first."""
    found = [path for path in (root / recipe).glob("version_*") if path.name.removeprefix("version_").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("version_")))


def new_folder(recipe: str, stem: str = "version", root: Path = RUNS) -> Path:
    """Create and return ``<stem>_<n>`` of a recipe, with the first number that is free above all others.

    Raises:
        UsageError: no folder can be made there.
    """
    parent = root / recipe
    try:
        parent.mkdir(parents=True, exist_ok=True)
        used = [path.name.removeprefix(f"{stem}_") for path in parent.glob(f"{stem}_*")]
        number = max((int(name) + 1 for name in used if name.isdigit()), default=0)
        while True:
            path = parent / f"{stem}_{number}"
            try:
                path.mkdir()
                return path
            except FileExistsError:  # another run of the recipe was faster
                number += 1
    except OSError as error:
        raise UsageError(f"{parent}: no folder for the run can be made there ({_reason(parent, error)})") from error


def _reason(path: Path, error: OSError) -> str:
    """Say what is in the way of making `path`, and what to do."""
    for part in [*reversed(path.parents), path]:
        if part.is_symlink() and not part.exists():
            return f"{part} is a link to {part.readlink()}, which does not exist: make that folder, or remove the link"
        if part.exists() and not part.is_dir():
            return f"{part} is a file: rename it"
    return f"{error.strerror}: free space or allow writing there, or start from another folder"
