"""ShortGPT: dropping the layers that change the residual stream least (arXiv:2403.03853), a depth baseline."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pydantic import Field, PositiveInt
from torch import nn

from pangu_modules.common.config import Config
from pangu_modules.common.parameters import count_parameters
from pangu_modules.llm.calibration.stream import catch_stream, layer_similarities
from pangu_modules.llm.calibration.windows import CalibrationConfig
from pangu_modules.llm.models import decoder
from pangu_modules.llm.pruning import surgery
from pangu_modules.llm.pruning.depth import select_dropped_layers
from pangu_modules.llm.pruning.report import LayerReport, PruneReport
from pangu_modules.training.objectives import Batch


class ShortGPTConfig(Config):
    """How many layers go."""

    renamed = {"calib": "calibration"}

    dropped_layers: PositiveInt = Field(description="Layers to drop, those of lowest block influence.")
    protect_layers: tuple[int, ...] = Field((), description="Layers never dropped; negative numbers from the end.")
    calibration: CalibrationConfig = Field(CalibrationConfig(), description="Calibration text.")


@torch.no_grad()
def drop_layers(model: nn.Module, config: ShortGPTConfig, batches: Iterable[Batch]) -> PruneReport:
    """Drop the layers of lowest block influence ``1 - mean cos(layer input, layer output)``.

    Args:
        model: a transformers causal language model of a supported architecture, changed in place.
        config: how many layers.
        batches: calibration tokens: ``input_ids`` (batch, seq) and, where padded, ``attention_mask`` (batch, seq).

    Raises:
        ValueError: unsupported model, no calibration tokens, or no layer would be left.
    """
    decoder.check_supported(model)
    before, training = count_parameters(model), model.training
    model.eval()
    try:
        stream = catch_stream(model, batches)
        similarities = layer_similarities(model, stream)
    finally:
        model.train(training)
    if config.dropped_layers >= len(similarities):
        raise ValueError(f"dropped_layers={config.dropped_layers} leaves none of {len(similarities)} layers")
    influence = 1 - torch.tensor(similarities, dtype=torch.float64)
    dropped = select_dropped_layers(influence, config.dropped_layers, protect=config.protect_layers)
    kept = [index for index in range(len(similarities)) if index not in dropped]
    surgery.keep_layers(model, kept)
    surgery.refresh_config(model)
    decoder.backbone(model).config.pruned_with = "shortgpt"
    return PruneReport(
        method="shortgpt",
        layers=tuple(
            _untouched(index, similarities[index], layer)
            for index, layer in zip(kept, decoder.decoder_layers(model), strict=True)
        ),
        kept_layers=tuple(kept),
        parameters_before=before,
        parameters_after=count_parameters(model),
        calibration_tokens=stream.num_tokens,
    )


def _untouched(index: int, similarity: float, layer: nn.Module) -> LayerReport:
    shape = decoder.layer_shape(layer)
    return LayerReport(
        index=index,
        similarity=similarity,
        share=0.0,
        kept_heads=tuple(range(shape.num_heads)),
        num_heads=shape.num_heads,
        kept_channels=tuple(range(shape.intermediate_size)),
        intermediate_size=shape.intermediate_size,
    )
