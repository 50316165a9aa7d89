"""What binarization adds to the run's report: losses around it, t over steps, histograms of weights, sizes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from torch import nn

from callbacks.measuring import held_out_batches, on_device
from pangu_modules.common.files import write_atomically
from pangu_modules.llm.models.perplexity import perplexity
from pangu_modules.llm.onebit.config import OneBitConfig
from pangu_modules.llm.onebit.layer import SMALLEST_SCALE, ProgressiveBinaryLinear
from pangu_modules.llm.onebit.schedule import Timeline, moment
from pangu_modules.llm.onebit.sizes import sizes_of
from pangu_modules.report.parts import add_figure, add_table
from pangu_modules.training.callback import run_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "dense": "full precision, before",
    "sign": "its sign, untrained",
    "start": "before the first step",
    "trained": "trained, before the sign",
    "binary": "trained, binary",
}
SNAPSHOTS = 5
BINS, LIMIT = 120, 3.0


class BinarizationRecord:
    """Numbers of a run that cannot be computed again: losses, and histograms of the effective weights.

    Args:
        name: of the callback; tables and figures have names that start with it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.losses: dict[str, float] = {}
        self.init_losses: list[float] = []
        self.histograms: dict[int, list[float]] = {}

    def measure(self, label: str, trainer: Trainer, model: nn.Module) -> None:
        """Store the loss on the datamodule's test set, as far as ``limit_test_batches`` goes; nothing without one."""
        batches = held_out_batches(trainer)
        if batches:
            with on_device(model, trainer.strategy.root_device), trainer.precision_plugin.forward_context():
                self.losses[label] = math.log(perplexity(model, batches))

    def take_histogram(self, step: int, total_steps: int, layers: Mapping[str, ProgressiveBinaryLinear]) -> None:
        """Store the histogram of all effective weights, each relative to its row's scale, at five steps of the run."""
        due = {round(part * total_steps / (SNAPSHOTS - 1)) for part in range(SNAPSHOTS)}
        if step not in due or step in self.histograms:
            return
        counts = sum(histogram(layer) for layer in layers.values())
        assert isinstance(counts, torch.Tensor)
        self.histograms[step] = (counts / counts.sum()).tolist()

    def state_dict(self) -> dict[str, Any]:
        """Return all numbers as plain data."""
        return {"losses": self.losses, "init_losses": self.init_losses, "histograms": self.histograms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the numbers of an interrupted run."""
        self.losses, self.init_losses = dict(state["losses"]), list(state["init_losses"])
        self.histograms = dict(state["histograms"])

    def write(self, trainer: Trainer, model: nn.Module, config: OneBitConfig, parts: Timeline) -> None:
        """Add tables and figures to the report of the run, and write all numbers as JSON into its folder."""
        folder = run_folder(trainer) if trainer.is_global_zero else None
        if folder is None:
            return
        losses = [{"model": LABELS[key], "test loss": self.losses[key]} for key in LABELS if key in self.losses]
        if losses:
            add_table(folder, f"{self.name}-1-losses", f"{self.name}: loss around binarization", losses)
        sizes = sizes_of(model, config)
        row = {
            "binarized weights": sizes.binarized,
            "share": sizes.binarized / sizes.parameters,
            "bytes per binarized weight": sizes.bytes_per_weight,
            "whole packed file (MB)": sizes.packed_bytes / 1e6,
            "bfloat16 file (MB)": sizes.dense_bytes / 1e6,
        }
        add_table(folder, f"{self.name}-2-sizes", f"{self.name}: sizes", [row])
        caption = "Effective weights relative to their row's scale, over all binarized layers, at five steps"
        add_figure(folder, f"{self.name}-3-weights", caption, draw_histograms(self.histograms))
        add_figure(folder, f"{self.name}-4-schedule", "The schedule", draw_schedule(config, parts))
        content = {"losses": self.losses, "init_losses": self.init_losses}
        write_atomically(folder / f"{self.name}.json", json.dumps(content, indent=1) + "\n")


@torch.no_grad()
def histogram(layer: ProgressiveBinaryLinear) -> torch.Tensor:
    """Return the counts (120,) of ``W_t / (S_l S_a)`` between -3 and 3; what lies outside counts at the ends."""
    rows = layer.row_scale() * layer.analytic_scale()
    relative = layer.effective_weight() / rows.clamp(min=SMALLEST_SCALE)
    return torch.histc(relative.float().clamp(-LIMIT, LIMIT).cpu(), bins=BINS, min=-LIMIT, max=LIMIT)


def draw_histograms(histograms: Mapping[int, list[float]]) -> Figure:
    """Draw one panel a step, the share of weights on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 1.0 + 1.1 * len(histograms)), layout="constrained")
    panels = figure.subplots(max(1, len(histograms)), 1, sharex=True, squeeze=False)[:, 0]
    width = 2 * LIMIT / BINS
    centers = [-LIMIT + (index + 0.5) * width for index in range(BINS)]
    for panel, (step, shares) in zip(panels, sorted(histograms.items()), strict=False):
        panel.bar(centers, shares, width=width)
        panel.set_yscale("log")
        panel.set_ylim(1e-5, 1)
        panel.set_ylabel(f"step {step}")
    panels[-1].set_xlabel("effective weight / row scale")
    return figure


def draw_schedule(config: OneBitConfig, parts: Timeline) -> Figure:
    """Draw the knob (t, or lambda) over the optimizer steps, and the hard tail."""
    from matplotlib.figure import Figure

    steps = range(parts.total_steps)
    knobs = [moment(config, parts, step).knob for step in steps]
    figure = Figure(figsize=(5.6, 3.2), layout="constrained")
    plot = figure.subplots()
    plot.plot(steps, knobs, drawstyle="steps-post")
    if config.method == "progressive":
        plot.set_yscale("symlog", linthresh=0.1)
    if parts.tail_start < parts.total_steps:
        plot.axvspan(parts.tail_start, parts.total_steps, alpha=0.2, label="binary weights")
        plot.legend(frameon=False)
    plot.set_xlabel("optimizer step")
    plot.set_ylabel("lambda" if config.method == "lambda" else "t")
    plot.grid(alpha=0.25)
    return figure
