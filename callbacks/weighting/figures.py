"""Figures of weighted training for the run's report, from the rows of its tables: weights, effective batch, loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
CAPTION = "Mean weight of each domain (1 is uniform), effective share of the batch, and the target's loss, by stage"


def draw_stages(domains: Rows, stages: Rows) -> Figure:
    """Draw mean weights by domain and stage with their standard errors, the effective batch, and the target's loss.

    Args:
        domains: rows of `callbacks.weighting.report.preference_rows`.
        stages: rows of `callbacks.weighting.report.stage_rows`.
    """
    from matplotlib.figure import Figure

    losses = [(row["stage"], row["validation loss, end"]) for row in stages if row["validation loss, end"] is not None]
    figure = Figure(figsize=(11 if losses else 7.5, 3.2), layout="constrained")
    panels = figure.subplots(1, 3 if losses else 2)
    for row in domains:
        numbers = [int(key.removeprefix("stage ")) for key in row if key.startswith("stage ")]
        known = [number for number in numbers if row[f"stage {number}"] is not None]
        means = [row[f"stage {number}"] for number in known]
        errors = [row[f"± stage {number}"] or 0.0 for number in known]
        panels[0].errorbar(known, means, yerr=errors, marker="o", label=row["domain"])
    panels[0].axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    panels[0].set_ylabel("mean weight")
    panels[0].legend(fontsize="small")
    panels[1].plot([row["stage"] for row in stages], [row["effective batch, share"] for row in stages], "o-")
    panels[1].set_ylabel("effective share of the batch")
    panels[1].set_ylim(0, 1.05)
    if losses:
        panels[2].plot(*zip(*losses, strict=True), "o-")
        panels[2].set_ylabel("target loss at the stage's end [nats]")
    for panel in panels:
        panel.set_xlabel("stage")
        panel.set_xticks([row["stage"] for row in stages])
        panel.grid(alpha=0.25)
    return figure
