"""Draw DWM's results over training (``python -m benchmarks.methods.dwm.curves``): weights, batch, target loss."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.methods.dwm.rows import MIXTURE
from pangu_modules.common.files import write_atomically
from pangu_modules.report.run_report import figure_to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEIGHED = (
    "dwm",
    "static",
    "per_sample",
    "dsir",
    "influence",
    "classifier",
    "perplexity",
    "loss_high",
    "loss_low",
    "random",
)
MIXED = ("uniform", *WEIGHED, "oracle")


def series(arm: Mapping[str, Any], prefix: str, chosen: Collection[str] | None = None) -> list[float]:
    """Return an arm's ``<prefix>_round0``, ``1``, ..., each the mean over its seeds or the chosen ones; maybe empty."""
    seeds = [numbers for seed, numbers in arm["results"].items() if chosen is None or seed in chosen]
    means: list[float] = []
    while seeds and all(f"{prefix}_round{len(means)}" in numbers for numbers in seeds):
        means.append(statistics.fmean(numbers[f"{prefix}_round{len(means)}"] for numbers in seeds))
    return means


def draw(arms: Mapping[str, Any], domains: Sequence[str] = MIXTURE) -> Figure:
    """Draw the mean weight of each domain under DWM, and all arms' effective batch and target loss, by round.

    Arms are compared on the seeds that all of them have: each seed has its own split of the text.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    colours = dict(zip(MIXED, colormaps["tab20"].colors, strict=False))  # type: ignore[attr-defined]
    colours["dwm"] = "black"
    common = set.intersection(*(set(arms[name]["results"]) for name in MIXED if name in arms))
    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    for domain in domains:
        values = series(arms["dwm"], f"weight_{domain}")
        panels[0].plot(range(len(values)), values, "o-", label=domain)
    panels[0].axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    for panel, names, prefix in ((panels[1], WEIGHED, "ess"), (panels[2], MIXED, "target_loss")):
        for name in names:
            if name in arms and (values := series(arms[name], prefix, common)):
                style = "o-" if name == "dwm" else ".--"
                panel.plot(range(len(values)), values, style, label=name, color=colours[name])
    which = f"seed{'s' if len(common) > 1 else ''} {', '.join(sorted(common))}"
    titles = (
        "mean weight of a domain (DWM, all seeds)",
        f"effective share of the batch ({which})",
        f"target loss at the round's end [nats] ({which})",
    )
    for panel, title in zip(panels, titles, strict=True):
        panel.set_ylabel(title)
        panel.set_xlabel("round")
        panel.grid(alpha=0.25)
        panel.legend(fontsize="x-small")
    return figure


def main(arguments: list[str]) -> int:
    """Read ``dwm.json`` and write ``dwm_training.png`` beside it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods.dwm.curves", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/claims"), help="folder of results")
    options = parser.parse_args(arguments)
    result = options.results / "dwm.json"
    if not result.is_file():
        parser.error(f"no {result}: run make claims NAME=dwm first")
    arms = json.loads(result.read_text(encoding="utf-8"))["arms"]
    print(write_atomically(options.results / "dwm_training.png", figure_to_png(draw(arms))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
