"""``python -m benchmarks.methods.onebit.figures``: the loss over steps of all methods, from the claims' result file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from benchmarks.methods.onebit.task import CURVE, CURVE_STEP
from pangu_modules.common.files import write_atomically
from pangu_modules.report.run_report import figure_to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = ("continued", "progressive_lr2", "continuous", "ste_lr2", "svid_lr2", "lambda", "b1", "b158", "constant_lr2")


def main(arguments: list[str]) -> int:
    """Write ``onebit_curves.png`` beside the result file; return 0, or 2 if there is none."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/claims"), help="where results are")
    options = parser.parse_args(arguments)
    file = options.results / "onebit.json"
    if not file.is_file():
        parser.error(f"no {file}: run make claims NAME=onebit first")
    arms = json.loads(file.read_text(encoding="utf-8"))["arms"]
    print(write_atomically(options.results / "onebit_curves.png", figure_to_png(draw_curves(arms))))
    return 0


def draw_curves(arms: Mapping[str, Any]) -> Figure:
    """Draw the training loss over steps of each method, the mean over its seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    plot = figure.subplots()
    for name in ARMS:
        if name in arms:
            curve = mean_curve(arms[name]["results"])
            steps = [CURVE_STEP * (index + 0.5) for index in range(len(curve))]
            plot.plot(steps, curve, label=arms[name]["description"], linewidth=1.3)
    plot.set_xlabel("optimizer step")
    plot.set_ylabel(f"training loss (nats, mean of {CURVE_STEP} steps)")
    plot.grid(alpha=0.25)
    plot.legend(frameon=False, fontsize=8)
    return figure


def mean_curve(results: Mapping[str, Mapping[str, float]]) -> list[float]:
    """Return the points of the training loss, the mean over an arm's seeds."""
    curves = [[numbers[key] for key in sorted(numbers) if key.startswith(CURVE)] for numbers in results.values()]
    return [fmean(values) for values in zip(*curves, strict=True)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
