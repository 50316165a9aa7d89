"""PanguLightReport: what Pangu Light did to a model, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pangu_modules.common.parameters import count_parameters
from pangu_modules.llm.models import decoder
from pangu_modules.llm.pruning.pangu_light.selection import PanguLightSelection
from pangu_modules.llm.pruning.pangu_light.target import ModelShape
from pangu_modules.llm.pruning.report import LayerReport, PruneReport
from pangu_modules.training.objectives import Batch


@dataclass(frozen=True)
class PanguLightReport(PruneReport):
    """Result of Pangu Light; every layer has the same sizes.

    A layer's `kept_heads` are those of its own that stayed, `share` is that of its attention and FFN parameters
    that went with heads and channels (width aside).

    Attributes:
        shape_before: sizes of the unpruned model.
        shape_after: sizes of the pruned model.
        dropped_layers: dropped layers with their scores under the depth criterion.
        adopted_groups: kept layers that adopted KV groups of dropped ones, with how many (CLAP).
        norm_factors: smallest, mean and largest factor on norm gains (SLNP).
        selection: all kept indices.
    """

    shape_before: ModelShape
    shape_after: ModelShape
    dropped_layers: dict[int, float]
    adopted_groups: dict[int, int]
    norm_factors: tuple[float, float, float]
    selection: PanguLightSelection

    def plain(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        return super().plain() | {"selection": self.selection.plain()}


def report_of(
    model: nn.Module, selection: PanguLightSelection, before: ModelShape, parameters_before: int, tokens: int
) -> PanguLightReport:
    """Return the report of a pruned model.

    Args:
        model: the model after `apply_selection`.
        selection: what was kept.
        before: shape of the unpruned model.
        parameters_before: parameters of the unpruned model.
        tokens: real calibration tokens.
    """
    adopted = {
        layer: sum(donor != layer for donor, _ in groups)
        for layer, groups in zip(selection.layers, selection.groups, strict=True)
    }
    factors = list(selection.norm_factors.values())
    scores = enumerate(selection.layer_scores)
    after = shape_of_model(model)
    head_dim = decoder.layer_shape(decoder.decoder_layers(model)[0]).head_dim
    share = 1 - _block_parameters(after, head_dim) / _block_parameters(before, head_dim)
    return PanguLightReport(
        method="pangu_light",
        layers=tuple(
            _layer_report(layer, position, selection, before, share) for position, layer in enumerate(selection.layers)
        ),
        kept_layers=selection.layers,
        parameters_before=parameters_before,
        parameters_after=count_parameters(model),
        calibration_tokens=tokens,
        shape_before=before,
        shape_after=after,
        dropped_layers={layer: score for layer, score in scores if layer not in selection.layers},
        adopted_groups={layer: count for layer, count in adopted.items() if count},
        norm_factors=(min(factors), sum(factors) / len(factors), max(factors)),
        selection=selection,
    )


def shape_of_model(model: nn.Module) -> ModelShape:
    """Read the five sizes of a uniform model from its tensors."""
    layers = decoder.decoder_layers(model)
    sizes = decoder.layer_shape(layers[0])
    return ModelShape(
        hidden_size=decoder.hidden_size(model),
        intermediate_size=sizes.intermediate_size,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_kv_heads,
        num_hidden_layers=len(layers),
    )


def count_tokens(batches: Sequence[Batch]) -> int:
    """Return the number of real tokens in the batches."""
    masks = [(batch["input_ids"], batch.get("attention_mask")) for batch in batches]
    return sum(ids.numel() if mask is None else int((mask != 0).sum()) for ids, mask in masks)


def _block_parameters(shape: ModelShape, head_dim: int) -> int:
    """Return the matrix parameters of a layer per hidden channel."""
    return head_dim * 2 * (shape.num_attention_heads + shape.num_key_value_heads) + 3 * shape.intermediate_size


def _layer_report(
    layer: int, position: int, selection: PanguLightSelection, before: ModelShape, share: float
) -> LayerReport:
    own = {group for donor, group in selection.groups[position] if donor == layer}
    foreign = len(selection.groups[position]) - len(own)
    return LayerReport(
        index=layer,
        similarity=1 - selection.block_influence[layer],
        share=share,
        kept_heads=tuple(head for head in selection.query_heads[layer] if head // before.queries_per_group in own),
        num_heads=before.num_attention_heads,
        kept_channels=selection.channels[position],
        intermediate_size=before.intermediate_size,
        adopted_heads=foreign * (len(selection.query_heads[layer]) // before.num_key_value_heads),
    )
