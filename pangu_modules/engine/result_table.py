"""The table of results: a row per stage, with test metrics first and costs last. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pangu_modules.report.tables import Column

COLUMNS: Mapping[str, Column] = {
    "test/accuracy": Column("accuracy", "%", 1),
    "test/accuracy_top5": Column("top 5", "%", 1),
    "test/loss": Column("loss", "nats", 3),
    "test/perplexity": Column("perplexity", "", 2),
    "generate/right": Column("right", "%", 1),
    "generate/solved": Column("solved", "%", 1),
    "generate/rollouts": Column("samples", "", 0),
    "generate/tokens": Column("tokens", "", 0),
    "generate/tokens_per_second": Column("tokens/s", "", 1),
    "parameters": Column("parameters"),
    "epochs": Column("epochs"),
    "seconds": Column("time", "s", 0),
}
FIRST = ("run", "stage")
PERCENT = ("test/accuracy", "generate/right", "generate/solved")
COSTS = ("parameters", "epochs", "seconds")


def result_row(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a stage's result, as in its ``result.json``: accuracies in percent, then what they cost."""
    metrics = {
        metric: 100 * value if metric.startswith(PERCENT) and isinstance(value, int | float) else value
        for metric, value in dict(result.get("metrics") or {}).items()
    }
    return {**metrics, **{name: result[name] for name in COSTS if name in result}}


def result_columns(rows: list[dict[str, Any]]) -> dict[str, Column | str]:
    """Return the columns of the result table: run and stage, the metrics in a fixed order, the costs."""
    names = {name for row in rows for name in row}
    known = [name for name in COLUMNS if name in names]
    others = sorted(names - set(known) - set(FIRST))
    first: dict[str, Column | str] = {name: name for name in FIRST if name in names}
    metrics = [name for name in known if name not in COSTS]
    costs = [name for name in known if name in COSTS]
    return first | {name: COLUMNS.get(name, name) for name in [*metrics, *others, *costs]}
