"""The record of what weights preferred, and its figure: mean weights by domain and round, what each round did."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pangu_modules.common.config import Config
from pangu_modules.common.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = "Mean weight of each domain (1 is uniform), effective share of the batch, and the target's loss, by round"


class DomainWeights(Config):
    """Mean weight of a domain's sequences (1 is uniform) by round; None where the round saw none of them."""

    measured: ClassVar[bool] = True

    domain: str = Field(description="Name or number.")
    tokens: int = Field(description="Target tokens of all rounds.")
    means: dict[int, float | None] = Field(description="Round -> mean weight.")
    errors: dict[int, float | None] = Field(description="Round -> standard error of the mean; None for one sequence.")

    def row(self) -> dict[str, Any]:
        """Return its row of the report's table."""
        row: dict[str, Any] = {"domain": self.domain, "tokens": self.tokens}
        for number, mean in self.means.items():
            row |= {f"round {number}": mean, f"± round {number}": self.errors[number]}
        return row


class RoundSummary(Config):
    """What a round did."""

    renamed = {"stage": "round"}
    measured: ClassVar[bool] = True

    round: int = Field(description="From 0.")
    updates: int = Field(description="Of the weighting model.")
    effective_batch: float = Field(description="Mean effective batch size, a share of the batch.")
    first_loss: float | None = Field(None, description="First validation loss, in nats.")
    last_loss: float | None = Field(None, description="Last validation loss, in nats.")

    def row(self) -> dict[str, Any]:
        """Return its row of the report's table."""
        first, last = self.first_loss, self.last_loss
        return {
            "round": self.round,
            "updates": self.updates,
            "effective batch, share": self.effective_batch,
            "validation loss, start": first,
            "validation loss, end": last,
            "change": None if first is None or last is None else last - first,
        }


class Preferences(Config):
    """All of a run's rounds."""

    renamed = {"stages": "rounds"}

    measured: ClassVar[bool] = True

    domains: tuple[DomainWeights, ...] = Field(description="In the order of their numbers.")
    rounds: tuple[RoundSummary, ...] = Field(description="In order.")


def write_preferences(folder: str | Path, name: str, record: Preferences) -> None:
    """Write the record of the callback `name` into the run's folder."""
    write_atomically(_file(folder, name), json.dumps(record.model_dump(), indent=1) + "\n")


def read_preferences(folder: str | Path, name: str) -> Preferences:
    """Return the record of the callback `name` from the run's folder.

    Raises:
        FileNotFoundError: there is none.
    """
    content: Mapping[str, Any] = json.loads(_file(folder, name).read_text(encoding="utf-8"))
    return Preferences.model_validate(content)


def _file(folder: str | Path, name: str) -> Path:
    return Path(folder) / f"{name}-preferences.json"


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
