"""Learning curves drawn from the ``metrics.csv`` that Lightning's CSVLogger writes."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curves = dict[str, tuple[list[int], list[float]]]
"""Name in the file, e.g. ``val/loss`` -> optimizer steps and values."""

STYLES: dict[str, dict[str, Any]] = {
    "train": {"linewidth": 1.0, "alpha": 0.55, "markersize": 2},
    "val": {"linewidth": 2.0, "markersize": 8},
}


@dataclass(frozen=True)
class Axis:
    """How a metric is drawn: the label with its unit, and the factor from logged to drawn values."""

    label: str
    factor: float = 1.0


AXES: Mapping[str, Axis] = {
    "loss": Axis("loss (nats)"),
    "accuracy": Axis("accuracy (%)", 100.0),
    "accuracy_top5": Axis("top-5 accuracy (%)", 100.0),
    "perplexity": Axis("perplexity (per token)"),
}


def learning_curves(metrics_csvs: Mapping[str, str | Path], axes: Mapping[str, Axis] = AXES) -> dict[str, Figure]:
    """Draw the learning curves of one or more stages from Lightning's ``metrics.csv`` files.

    Args:
        metrics_csvs: stage -> file written by ``CSVLogger`` (columns ``epoch``, ``step``, ``train/loss``,
            ``val/accuracy``, ...). Training values are drawn thin, validation values strong; one color a stage.
        axes: metric -> label with unit and factor; a metric not listed is labelled with its name.

    Returns:
        Caption -> figure, one figure for each metric logged under ``train/`` or ``val/``; empty without any.
    """
    curves = {stage: read_curves(path) for stage, path in metrics_csvs.items()}
    metrics = {name.partition("/")[2] for of_stage in curves.values() for name in of_stage}
    figures: dict[str, Figure] = {}
    for metric in sorted(metrics, key=lambda metric: (metric not in axes, metric)):
        axis = axes.get(metric, Axis(metric))
        figures[f"Learning curve: {axis.label.partition(' (')[0]}"] = _draw(metric, curves, axis)
    return figures


def _draw(metric: str, curves: Mapping[str, Curves], axis: Axis) -> Figure:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 12}):  # still readable where a phone shrinks the figure
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        plot = figure.subplots()
    for index, (stage, of_stage) in enumerate(curves.items()):
        for split, style in STYLES.items():
            steps, values = of_stage.get(f"{split}/{metric}", ([], []))
            if steps:
                drawn = [axis.factor * value for value in values]
                plot.plot(steps, drawn, color=f"C{index}", label=f"{stage} {split}".strip(), marker=".", **style)
    plot.set_xlabel("optimizer step")
    plot.set_ylabel(axis.label)
    plot.grid(alpha=0.25)
    plot.legend(frameon=False, fontsize=10)
    return figure


def read_curves(path: str | Path) -> Curves:
    """Read a ``metrics.csv``: name under ``train/`` or ``val/`` -> optimizer steps and finite values, in file order.

    A kill or a full disk can cut off the last row; what is no number there is not drawn.
    """
    curves: Curves = {}
    with Path(path).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step = _number(row.get("step"))
            for name, text in row.items():
                value = _number(text) if name and name.startswith(("train/", "val/")) else math.nan
                if math.isfinite(step) and math.isfinite(value):
                    steps, values = curves.setdefault(name, ([], []))
                    steps.append(int(step))
                    values.append(value)
    return curves


def _number(text: str | None) -> float:
    """Return the number that `text` is, or nan."""
    try:
        return float(text or math.nan)
    except ValueError:
        return math.nan
