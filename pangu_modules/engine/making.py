"""Running a stage that makes data: build its parts, hand them to what the registry names, and keep the result."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything

from pangu_modules.common import registry
from pangu_modules.common.errors import UsageError
from pangu_modules.common.files import write_atomically
from pangu_modules.common.production import Produced, Production
from pangu_modules.engine.data_stages import DataStage
from pangu_modules.engine.errors import usage_errors
from pangu_modules.engine.folder import RunFolder, stored_result, to_yaml
from pangu_modules.engine.launch import leads
from pangu_modules.engine.run import build_data, build_module
from pangu_modules.report.parts import read_table
from pangu_modules.report.run_report import terminal_table


@dataclass(frozen=True)
class DataResult:
    """What a finished stage has made.

    Attributes:
        metrics: figures of the data, e.g. ``generate/right``.
        rows: number of rows.
        seconds: wall time of making them, over all processes that took part.
        artefact: the folder of shards and manifest.
        seed: the stage's seed.
    """

    metrics: dict[str, float]
    rows: int
    seconds: float
    artefact: Path
    seed: int

    def plain(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {**asdict(self), "artefact": str(self.artefact)}

    @classmethod
    def read(cls, folder: RunFolder) -> DataResult | None:
        """Return the result stored in `folder`, or None while the stage is unfinished.

        Raises:
            UsageError: the file is damaged.
        """
        return stored_result(cls, folder)


def make_data(
    stage: DataStage, path: Path, *, quiet: bool = False, begin: Callable[[], None] | None = None
) -> DataResult:
    """Make a stage's data in the folder `path`; what an earlier process has made there is kept.

    Args:
        stage: what to make.
        path: folder for its files.
        quiet: no progress bar and no table.
        begin: called once some of the data are there, i.e. when nothing of the configuration is refused any more.

    Raises:
        UsageError: a value of the configuration cannot be used, the folder holds other data, a server cannot be asked,
            or rows are missing in the end; those that were made are kept.
    """
    if not leads():
        raise UsageError(f"a stage of kind {stage.kind} runs in one process: start it alone, without a launcher")
    folder = RunFolder(path)
    folder.path.mkdir(parents=True, exist_ok=True)
    seed_everything(stage.seed, workers=True, verbose=False)
    data = build_data(stage) if "data" in stage.parts else None
    make = registry.load("data stage", stage.kind)
    pending = [lambda: _write_config(stage, folder), *([] if begin is None else [begin])]
    with usage_errors_of_making(), _progress(stage, quiet) as show:

        def progress(done: int, total: int) -> None:
            while pending:
                pending.pop(0)()
            show(done, total)

        produced: Produced = make(Production(stage, path, lambda: _module(stage, data), data, progress))
    if not quiet:
        _print_tables(path, produced)
    if produced.failures:
        folder.result.unlink(missing_ok=True)  # of an earlier run with fewer samples: the stage is unfinished again
        what, why = next(iter(produced.failures.items()))
        raise UsageError(
            f"{len(produced.failures)} of {len(produced.failures) + produced.rows} samples are missing; the first is "
            f"{what}: {why}; those that are there are kept in {path / stage.artefact}"
        )
    result = DataResult(
        metrics=dict(produced.metrics),
        rows=produced.rows,
        seconds=produced.seconds,
        artefact=path / stage.artefact,
        seed=stage.seed,
    )
    write_atomically(folder.result, json.dumps(result.plain(), indent=2) + "\n")
    return result


def _write_config(stage: DataStage, folder: RunFolder) -> None:
    write_atomically(folder.path / "config.yaml", to_yaml(stage.plain()))


@contextmanager
def usage_errors_of_making() -> Iterator[None]:
    """Turn what is wrong with values, stores and servers into a UsageError; errors of the disk pass."""
    try:
        yield
    except (ValueError, ImportError, ConnectionError, TimeoutError):
        with usage_errors(""):
            raise


def _module(stage: DataStage, data: Any) -> Any:
    """Build the stage's module where it computes, ready to be asked."""
    module: Any = build_module(stage, data)
    name = stage.device
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        device = torch.device(accelerator or "cpu") if name == "auto" else torch.device(name)
        return module.to(device).eval().requires_grad_(False)
    except (RuntimeError, AssertionError) as error:  # torch's own words for a device that is not there
        raise UsageError(
            f"device={name!r}: {str(error).splitlines()[0]}; take auto, or a device that is here"
        ) from error


def _print_tables(path: Path, produced: Produced) -> None:
    for name in produced.tables:
        table = read_table(path, name)
        terminal_table(table.rows, table.columns, table.title)


@contextmanager
def _progress(stage: DataStage, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield what is told how much is done; on a terminal it is a bar with the time that is left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), transient=True, disable=quiet) as bar:
        task = bar.add_task(f"{stage.artefact}, parts", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
