"""SlimLLM: structured pruning of heads and FFN channels with closed-form repair (arXiv:2505.22689).

The layers are walked once, from below, on the stream of the already pruned layers: attention (heads by Pearson
similarity with greedy exchange), then FFN (channels in the feature space of its output), each followed by a linear
regression on the sub-layer's own whole output. No gradients (except for the ``taylor`` baseline).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pangu_modules.llm.calibration.progress import WalkProgress, fingerprint
from pangu_modules.llm.calibration.stream import Stream, catch_stream, layer_similarities
from pangu_modules.llm.models import decoder
from pangu_modules.llm.pruning import surgery
from pangu_modules.llm.pruning.plan import LayerSizes
from pangu_modules.llm.pruning.report import LayerReport, PruneReport, count_parameters
from pangu_modules.llm.pruning.slimllm.channels import prune_channels
from pangu_modules.llm.pruning.slimllm.config import SlimLLMConfig
from pangu_modules.llm.pruning.slimllm.criteria import ChannelCriterion
from pangu_modules.llm.pruning.slimllm.heads import prune_heads
from pangu_modules.llm.pruning.slimllm.layer_ratios import (
    channels_to_keep,
    head_units_to_remove,
    layer_ratios,
    removed_attention_fraction,
    rounded,
)
from pangu_modules.llm.pruning.slimllm.taylor import LayerTaylor, taylor_scores
from pangu_modules.training.objectives import Batch

PRE_NORM_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


@torch.no_grad()
def prune_slimllm(
    model: nn.Module,
    config: SlimLLMConfig,
    batches: Iterable[Batch],
    progress_folder: str | Path | None = None,
) -> PruneReport:
    """Prune heads and channels of `model` in place.

    Args:
        model: a transformers causal language model of a supported architecture, on the device to calibrate on.
        config: ratios, criteria and repair.
        batches: calibration tokens: ``input_ids`` (batch, seq) and, where padded, ``attention_mask`` (batch, seq).
        progress_folder: where finished layers are kept, so that the same call continues after a kill; removed at the
            end. None keeps nothing.

    Returns:
        What was kept, per layer.

    Raises:
        ValueError: unsupported or already pruned model, no calibration tokens, ratios that leave nothing, an activation
            that is not finite.
        TypeError: the model is quantised.
    """
    calibration = list(batches)
    _check_model(model)
    before = count_parameters(model)
    training = model.training
    model.eval()
    try:
        progress = WalkProgress(progress_folder, fingerprint(config, model, calibration) if progress_folder else "")
        stream = catch_stream(model, calibration)
        _warn_about_rank(stream, model, config)
        taylor = taylor_scores(model, calibration) if _needs_gradients(config) else None
        reports = _walk(model, config, stream, taylor, progress)
    finally:
        model.train(training)
    surgery.refresh_config(model)
    decoder.backbone(model).config.pruned_with = "slimllm"
    progress.clear()
    return PruneReport(
        method="slimllm",
        layers=tuple(reports),
        kept_layers=tuple(range(len(reports))),
        parameters_before=before,
        parameters_after=count_parameters(model),
        calibration_tokens=stream.num_tokens,
    )


def _walk(
    model: nn.Module,
    config: SlimLLMConfig,
    stream: Stream,
    taylor: list[LayerTaylor] | None,
    progress: WalkProgress,
) -> list[LayerReport]:
    """Prune layer after layer, from the first one that an earlier run did not finish."""
    layers = decoder.decoder_layers(model)
    similarities, finished = _similarities(model, config, stream, progress)
    ratios = _ratios(similarities or [0.0] * len(layers), config)
    pruned = _pruned_layers(ratios)
    reports = [LayerReport.from_plain(record) for record in finished]
    for index in range(len(reports), len(layers)):
        # The stream stands in front of the first pruned layer; nobody needs what leaves the last one.
        visited = stream if index in pruned else None
        similarity = similarities[index] if similarities else None
        report = _prune_layer(
            layers[index], index, visited, config, similarity, ratios[index], taylor[index] if taylor else None
        )
        reports.append(report)
        data = {"report": asdict(report), "similarities": similarities}
        progress.save(layers[index], {"sizes": LayerSizes.of(layers[index]).plain(), "data": data}, stream)
    return reports


def _similarities(
    model: nn.Module, config: SlimLLMConfig, stream: Stream, progress: WalkProgress
) -> tuple[list[float] | None, list[dict[str, Any]]]:
    """Return the dense model's layer similarities, if needed, and the reports of layers that an earlier run finished.

    The stream stands in front of the first layer that is pruned afterwards.
    """
    records = [record["data"] for record in progress.restore(model, stream, _reshape)]
    if records:
        return records[0]["similarities"], [record["report"] for record in records]
    if _same_everywhere(config, len(decoder.decoder_layers(model))):
        return None, []
    first = lambda similarities: _pruned_layers(_ratios(similarities, config)).start  # noqa: E731
    return layer_similarities(model, stream, first), []


def _reshape(layer: nn.Module, record: dict[str, Any]) -> None:
    LayerSizes.model_validate(record["sizes"]).apply(layer)


def _same_everywhere(config: SlimLLMConfig, num_layers: int) -> bool:
    """Whether every layer is pruned by the base ratio, so that a pass through the dense model would tell nothing."""
    return config.alpha == 0 and _num_pruned(config, num_layers) == num_layers


def _num_pruned(config: SlimLLMConfig, num_layers: int) -> int:
    return config.pruned_layers or max(1, rounded(26 / 32 * num_layers))


def _ratios(similarities: list[float], config: SlimLLMConfig) -> list[float]:
    num_pruned = _num_pruned(config, len(similarities))
    return layer_ratios(similarities, config.base_ratio, num_pruned, config.alpha, config.max_layer_ratio)


def _pruned_layers(ratios: list[float]) -> range:
    """Return the layers from the first to the last one that is pruned."""
    pruned = [index for index, ratio in enumerate(ratios) if ratio > 0]
    return range(pruned[0], pruned[-1] + 1) if pruned else range(0)


def _prune_layer(
    layer: nn.Module,
    index: int,
    stream: Stream | None,
    config: SlimLLMConfig,
    similarity: float | None,
    ratio: float,
    taylor: LayerTaylor | None,
) -> LayerReport:
    """Prune one layer's attention and FFN and move the stream past the layer; without a stream only report on it."""
    shape = decoder.layer_shape(layer)
    heads: list[int] = list(range(shape.num_heads))
    channels: list[int] = list(range(shape.intermediate_size))
    head_similarity = None
    if stream is not None:
        generator = torch.Generator().manual_seed(config.seed + 7919 * index)
        num_remove, num_keep = _counts(layer, index, config, ratio)
        if num_remove:
            heads, head_similarity = _prune_attention(layer, index, stream, config, num_remove, taylor, generator)
        else:
            stream.pass_attention(layer, index)
        if num_keep < shape.intermediate_size:
            channels = _prune_ffn(layer, index, stream, config, num_keep, taylor, generator)
        else:
            stream.pass_ffn(layer)
    return LayerReport(
        index=index,
        similarity=similarity,
        ratio=ratio,
        kept_heads=tuple(heads),
        num_heads=shape.num_heads,
        kept_channels=tuple(channels),
        intermediate_size=shape.intermediate_size,
        head_similarity=head_similarity,
    )


def _prune_attention(
    layer: nn.Module,
    index: int,
    stream: Stream,
    config: SlimLLMConfig,
    num_remove: int,
    taylor: LayerTaylor | None,
    generator: torch.Generator,
) -> tuple[list[int], float]:
    assert config.head_unit != "none"
    return prune_heads(
        layer,
        index,
        stream,
        unit=config.head_unit,
        num_remove=num_remove,
        criterion=config.head_criterion,
        greedy=config.greedy,
        recovery=config.recovery,
        ridge=config.ridge,
        taylor=taylor.heads if taylor else None,
        generator=generator,
    )


def _prune_ffn(
    layer: nn.Module,
    index: int,
    stream: Stream,
    config: SlimLLMConfig,
    num_keep: int,
    taylor: LayerTaylor | None,
    generator: torch.Generator,
) -> list[int]:
    return prune_channels(
        layer,
        index,
        stream,
        num_keep=num_keep,
        criterion=_channel_criterion(config),
        keep_least_fraction=config.keep_least_fraction,
        recovery=config.recovery,
        ridge=config.ridge,
        taylor=taylor.channels if taylor else None,
        generator=generator,
    )


def _counts(layer: nn.Module, index: int, config: SlimLLMConfig, ratio: float) -> tuple[int, int]:
    """Return how many head units go (per group for ``query``) and how many channels stay.

    Raises:
        ValueError: nothing would be left; the layer is named.
    """
    shape = decoder.layer_shape(layer)
    try:
        num_remove = 0 if config.head_unit == "none" else head_units_to_remove(shape, config.head_unit, ratio)
        if config.ffn_unit == "none":
            return num_remove, shape.intermediate_size
        surplus = 0.0
        if config.balance_to_target and config.head_unit != "none":
            surplus = ratio - removed_attention_fraction(shape, config.head_unit, num_remove)
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        per_channel = 3 * mlp.down_proj.out_features
        owed = surplus * _weights(attention) / per_channel
        fraction = ratio + owed / shape.intermediate_size
        fraction = min(max(fraction, 0.0), config.max_layer_ratio)
        return num_remove, channels_to_keep(shape.intermediate_size, fraction, config.round_channels_to)
    except ValueError as error:
        raise ValueError(f"layer {index}: {error}") from error


def _weights(module: nn.Module) -> int:
    return sum(child.weight.numel() for child in module.modules() if isinstance(child, nn.Linear))


def _channel_criterion(config: SlimLLMConfig) -> ChannelCriterion:
    if config.ffn_criterion == "feature_space" and not config.pca_weighting:
        return "three_term"
    return config.ffn_criterion


def _needs_gradients(config: SlimLLMConfig) -> bool:
    heads = config.head_unit != "none" and config.head_criterion == "taylor"
    return heads or (config.ffn_unit != "none" and config.ffn_criterion == "taylor")


def _check_model(model: nn.Module) -> None:
    decoder.check_supported(model)
    config = decoder.backbone(model).config
    if getattr(config, "layer_shapes", None) or getattr(config, "pruned_with", None):
        method = getattr(config, "pruned_with", None) or "another method"
        raise ValueError(
            f"the model was already pruned (by {method}): scores of a pruned model are not those of the paper; prune "
            "the original model with a larger base_ratio"
        )
    for index, layer in enumerate(decoder.decoder_layers(model)):
        extra = {name for name, _ in layer.named_children()} - PRE_NORM_PARTS
        if extra:
            raise ValueError(
                f"layer {index} has {sorted(extra)}: SlimLLM prunes pre-norm layers, whose sub-layers are added to the "
                "residual stream as they are"
            )


def _warn_about_rank(stream: Stream, model: nn.Module, config: SlimLLMConfig) -> None:
    width = decoder.hidden_size(model)
    needs_rank = config.ffn_unit != "none" and _channel_criterion(config) == "feature_space"
    if needs_rank and stream.num_tokens < 2 * width:
        warnings.warn(
            f"{stream.num_tokens} calibration tokens for hidden size {width}: below {2 * width} the output's "
            "covariance is close to singular and its mean eigenvalue says little; calibrate on more tokens",
            stacklevel=3,
        )
