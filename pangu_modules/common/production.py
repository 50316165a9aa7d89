"""What a stage that makes data hands to the function that makes them, and what comes back; data only.

Such a function stands in the registry under the stage's kind: the engine runs it, and knows no method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Production:
    """The work of a stage that makes data.

    Attributes:
        stage: the stage's configuration, e.g. a `GenerateStage`.
        folder: the stage's folder; what is made lies below it, and what an earlier process has made is there already.
        module: builds the stage's module, on its device and ready to compute; called only where it is needed.
        data: the stage's datamodule; None for a stage without one.
        progress: told how many parts of how many are done.
    """

    stage: Any
    folder: Path
    module: Callable[[], Any]
    data: Any
    progress: Callable[[int, int], None] = lambda done, total: None


@dataclass(frozen=True)
class Produced:
    """What a stage has made.

    Attributes:
        metrics: figures for the result table.
        rows: number of rows in the artefact.
        seconds: of making them, over all processes that took part.
        tables: names of the report's tables that the terminal shows too (see `pangu_modules.report.parts`).
        failures: why rows are missing, by what was asked; a later run asks for these alone.
    """

    metrics: Mapping[str, float]
    rows: int
    seconds: float
    tables: tuple[str, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
