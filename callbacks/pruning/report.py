"""What a pruning callback adds to the run's report: perplexity and cost before and after, the layers, a heat map."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from callbacks.measuring import costs_of, held_out_batches, on_device
from callbacks.pruning.perplexities import LABELS, Perplexities, write_perplexities
from pangu_modules.llm.models import decoder
from pangu_modules.llm.models.perplexity import perplexity
from pangu_modules.llm.pruning.report import LayerReport, PruneReport
from pangu_modules.report.parts import add_figure, add_table
from pangu_modules.report.tables import Column
from pangu_modules.training.callback import run_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COST_COLUMNS = {
    "model": Column("model"),
    "parameters": Column("parameters"),
    "flops_per_token": Column("operations per token", "FLOPs"),
    "tokens_per_second": Column("speed", "tokens/s", 0),
}
BINS = 64


class PruningRecord:
    """Keeps a copy of a model before it is pruned; given what was pruned, measures both for the report.

    Perplexity is that of the datamodule's test set, as far as the trainer's ``limit_test_batches`` goes; there is none
    without a test set.

    Args:
        trainer: its folder receives the parts.
        model: the model before pruning.
        name: of the callback; the parts have names that start with it.
    """

    def __init__(self, trainer: Trainer, model: nn.Module, name: str) -> None:
        self.folder, self.name, self.model = run_folder(trainer), name, model
        self.dense: nn.Module | None = copy.deepcopy(model)
        self.device = trainer.strategy.root_device
        self.batches = held_out_batches(trainer)

    def write(self, report: PruneReport) -> None:
        """Measure both models and add tables and figure to the report; the copy is given up."""
        dense, self.dense = self.dense, None
        if self.folder is None:
            return
        assert dense is not None
        with on_device(dense, self.device), on_device(self.model, self.device):
            costs = costs_of({LABELS["before"]: dense, LABELS["pruned"]: self.model}, self.batches)
            if self.batches:
                write_perplexities(self.folder, self.name, self._perplexities(dense, report))
        rows = [{"model": stage, **cost} for stage, cost in costs.items()]
        columns = {key: column for key, column in COST_COLUMNS.items() if any(key in row for row in rows)}
        add_table(self.folder, f"{self.name}-2-cost", f"{self.name}: cost", rows, columns)
        add_table(self.folder, f"{self.name}-3-layers", f"{self.name}: layers", layer_rows(report.layers))
        caption = "Kept query heads, and kept share of FFN channels, of each layer"
        add_figure(self.folder, f"{self.name}-4-map", caption, draw_kept(report.layers))

    def _perplexities(self, dense: nn.Module, report: PruneReport) -> Perplexities:
        before, repaired_from = perplexity(dense, self.batches), None
        with unrepaired(self.model, dense, report) as repaired:
            if repaired:
                repaired_from = perplexity(self.model, self.batches)
        return Perplexities(before=before, unrepaired=repaired_from, pruned=perplexity(self.model, self.batches))


def layer_rows(layers: Sequence[LayerReport]) -> list[dict[str, Any]]:
    """Return the table of layers: what stayed of each, and the cosine of its input and output before pruning."""
    rows: list[dict[str, Any]] = [
        {
            "layer": layer.index,
            "similarity": layer.similarity,
            "requested share": layer.share,
            "query heads": f"{len(layer.kept_heads)} of {layer.num_heads}",
            "adopted heads": layer.adopted_heads or None,
            "FFN channels": f"{len(layer.kept_channels)} of {layer.intermediate_size}",
            "heads' correlation": layer.head_similarity,
        }
        for layer in layers
    ]
    known = {column for row in rows for column, value in row.items() if value is not None}
    return [{column: value for column, value in row.items() if column in known} for row in rows]


def draw_kept(layers: Sequence[LayerReport]) -> Figure:
    """Draw one row a layer: its heads, kept or not, and the share of its FFN channels kept in 64 parts."""
    from matplotlib.figure import Figure

    heads = torch.zeros(len(layers), layers[0].num_heads)
    channels = torch.zeros(len(layers), min(BINS, layers[0].intermediate_size))
    for row, layer in enumerate(layers):
        heads[row, list(layer.kept_heads)] = 1
        kept = torch.zeros(layer.intermediate_size)
        kept[list(layer.kept_channels)] = 1
        channels[row] = nn.functional.adaptive_avg_pool1d(kept[None], channels.shape[1])[0]
    figure = Figure(figsize=(8, 1.2 + 0.16 * len(layers)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, width_ratios=(1, 3))
    for panel, values, title in zip(panels, (heads, channels), ("query heads", "FFN channels"), strict=True):
        image = panel.imshow(values.numpy(), aspect="auto", vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
        panel.set_xlabel(title)
    panels[1].set_xticks([0, channels.shape[1] - 1], ["0", f"{layers[0].intermediate_size - 1}"])
    step = max(1, len(layers) // 15)
    panels[0].set_yticks(range(0, len(layers), step), [str(layer.index) for layer in layers[::step]])
    panels[0].set_ylabel("layer")
    figure.colorbar(image, ax=panels, label="share kept")
    return figure


@contextmanager
@torch.no_grad()
def unrepaired(model: nn.Module, dense: nn.Module, report: PruneReport) -> Iterator[bool]:
    """Give the output matrices the unpruned model's columns for a while, if they differ; yields whether they do.

    A model whose rows or heads are not a selection of its own old ones (hidden channels cut, attention merged) is left
    alone.
    """
    changes = _old_outputs(model, dense, report)
    if all(torch.equal(parameter, old) for parameter, old in changes):
        yield False
        return
    new = [parameter.clone() for parameter, _ in changes]
    for parameter, old in changes:
        parameter.copy_(old)
    try:
        yield True
    finally:
        for (parameter, _), value in zip(changes, new, strict=True):
            parameter.copy_(value)


def _old_outputs(model: nn.Module, dense: nn.Module, report: PruneReport) -> list[tuple[nn.Parameter, Tensor]]:
    """Return weights and biases of the output matrices with what they would be without repair; none if unknown."""
    changes: list[tuple[nn.Parameter, Tensor]] = []
    whole: Any = decoder.decoder_layers(dense)
    layers: Any = decoder.decoder_layers(model)
    for entry, layer in zip(report.layers, layers, strict=True):
        width = decoder.layer_shape(layer).head_dim
        heads = [head * width + column for head in entry.kept_heads for column in range(width)]
        before = whole[entry.index]
        for linear, old, columns in (
            (layer.self_attn.o_proj, before.self_attn.o_proj, heads),
            (layer.mlp.down_proj, before.mlp.down_proj, list(entry.kept_channels)),
        ):
            weight = old.weight[:, columns]
            if weight.shape != linear.weight.shape:
                return []
            changes.append((linear.weight, weight))
            if linear.bias is not None:
                changes.append((linear.bias, torch.zeros_like(linear.bias) if old.bias is None else old.bias))
    return changes
