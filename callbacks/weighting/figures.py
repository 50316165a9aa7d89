"""Figures of weighted training for the run's report, from its record: weights, effective batch, loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from callbacks.weighting.preferences import Preferences

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = "Mean weight of each domain (1 is uniform), effective share of the batch, and the target's loss, by round"


def draw_preferences(record: Preferences) -> Figure:
    """Draw mean weights by domain and round with their standard errors, the effective batch, and the target's loss."""
    from matplotlib.figure import Figure

    losses = [(each.round, each.last_loss) for each in record.rounds if each.last_loss is not None]
    numbers = [each.round for each in record.rounds]
    figure = Figure(figsize=(11 if losses else 7.5, 3.2), layout="constrained")
    panels = figure.subplots(1, 3 if losses else 2)
    for domain in record.domains:
        means = {number: mean for number, mean in domain.means.items() if mean is not None}
        errors = [domain.errors[number] or 0.0 for number in means]
        panels[0].errorbar(list(means), list(means.values()), yerr=errors, marker="o", label=domain.domain)
    panels[0].axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    panels[0].set_ylabel("mean weight")
    panels[0].legend(fontsize="small")
    panels[1].plot(numbers, [each.effective_batch for each in record.rounds], "o-")
    panels[1].set_ylabel("effective share of the batch")
    panels[1].set_ylim(0, 1.05)
    if losses:
        panels[2].plot(*zip(*losses, strict=True), "o-")
        panels[2].set_ylabel("target loss at the round's end [nats]")
    for panel in panels:
        panel.set_xlabel("round")
        panel.set_xticks(numbers)
        panel.grid(alpha=0.25)
    return figure
