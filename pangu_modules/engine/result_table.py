"""The table of results: a row per stage, with test metrics first and costs last. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pangu_modules.report.tables import Column

COLUMNS: Mapping[str, Column] = {
    "test/accuracy": Column("accuracy", "%", 1),
    "test/accuracy_top5": Column("top 5", "%", 1),
    "test/loss": Column("loss", "nats", 3),
    "test/perplexity": Column("perplexity", "", 2),
    "test/target_tokens": Column("tokens learned from", "", 0),
    "score/sequences": Column("scored", "", 0),
    "score/tokens": Column("tokens", "", 0),
    "score/bytes_per_token": Column("bytes/token", "", 1),
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
BY_LABEL: Mapping[str, Column] = {"test/accuracy_": Column("accuracy", "%", 1), "test/kl_": Column("KL", "nats", 3)}
"""Metrics that are logged once for each label of the tasks, by the beginning of their names."""
IN_REPORT_ALONE = ("test/accuracy_top5", "score/mean_logprob", "score/tokens_per_second")
BESIDE_LABELS = ("test/loss", "test/perplexity", "parameters", "epochs")


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
    labelled = [name for name in others if name.startswith(tuple(BY_LABEL))]
    rest = [name for name in others if name not in labelled]
    return first | {name: column_of(name) for name in [*labelled, *metrics, *rest, *costs]}


def column_of(name: str) -> Column | str:
    """Return the column of a metric: its heading, with the label where there is one a label."""
    if name in COLUMNS:
        return COLUMNS[name]
    for start, column in BY_LABEL.items():
        if name.startswith(start):
            return replace(column, title=f"{column.title}, {name.removeprefix(start)}")
    return name


def narrow(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows that fit 80 columns of a terminal; the report has all."""
    labelled = any(name.startswith(tuple(BY_LABEL)) and name not in COLUMNS for row in rows for name in row)
    left_out = (*IN_REPORT_ALONE, *(BESIDE_LABELS if labelled else ()))
    return [{name: value for name, value in row.items() if name not in left_out} for row in rows]
