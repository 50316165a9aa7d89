"""SlimLLM: structured pruning of heads and FFN channels with closed-form repair (arXiv:2505.22689).

The layers are walked once, from below, on the stream of the already pruned layers: attention (heads by Pearson
similarity with greedy exchange), then FFN (channels in the feature space of its output), each followed by a linear
regression on the sub-layer's own whole output. No gradients (except for the ``taylor`` baseline).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pangu_modules.common.parameters import count_parameters
from pangu_modules.llm.calibration.progress import WalkProgress, fingerprint
from pangu_modules.llm.calibration.stream import Stream, catch_stream, layer_similarities
from pangu_modules.llm.models import decoder
from pangu_modules.llm.pruning import surgery
from pangu_modules.llm.pruning.plan import LayerSizes
from pangu_modules.llm.pruning.report import LayerReport, PruneReport
from pangu_modules.llm.pruning.slimllm.channels import channel_criterion
from pangu_modules.llm.pruning.slimllm.config import SlimLLMConfig
from pangu_modules.llm.pruning.slimllm.layer import Kept, prune_sublayers
from pangu_modules.llm.pruning.slimllm.layer_shares import layer_shares, rounded
from pangu_modules.llm.pruning.slimllm.taylor import LayerTaylor, taylor_scores
from pangu_modules.llm.pruning.slimllm.visit import LayerVisit
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
        config: shares, criteria and repair.
        batches: calibration tokens: ``input_ids`` (batch, seq) and, where padded, ``attention_mask`` (batch, seq).
        progress_folder: where finished layers are kept, so that the same call continues after a kill; removed at the
            end. None keeps nothing.

    Returns:
        What was kept, per layer.

    Raises:
        ValueError: unsupported or already pruned model, no calibration tokens, shares that leave nothing, an activation
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


@dataclass(frozen=True)
class _Walk:
    """What is known before the first layer is pruned: per layer, or None where nothing depends on it."""

    config: SlimLLMConfig
    stream: Stream
    taylor: list[LayerTaylor] | None
    similarities: list[float] | None
    shares: list[float]


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
    shares = _shares(similarities or [0.0] * len(layers), config)
    walk = _Walk(config, stream, taylor, similarities, shares)
    reports = [LayerReport.from_plain(record) for record in finished]
    for index in range(len(reports), len(layers)):
        report = _prune_layer(layers[index], index, walk)
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
    first = lambda similarities: _pruned_layers(_shares(similarities, config)).start  # noqa: E731
    return layer_similarities(model, stream, first), []


def _reshape(layer: nn.Module, record: dict[str, Any]) -> None:
    LayerSizes.model_validate(record["sizes"]).apply(layer)


def _same_everywhere(config: SlimLLMConfig, num_layers: int) -> bool:
    """Whether every layer is pruned by the base share, so that a pass through the dense model would tell nothing."""
    return config.alpha == 0 and _num_pruned(config, num_layers) == num_layers


def _num_pruned(config: SlimLLMConfig, num_layers: int) -> int:
    return config.pruned_layers or max(1, rounded(26 / 32 * num_layers))


def _shares(similarities: list[float], config: SlimLLMConfig) -> list[float]:
    num_pruned = _num_pruned(config, len(similarities))
    return layer_shares(similarities, config.base_share, num_pruned, config.alpha, config.max_layer_share)


def _pruned_layers(shares: list[float]) -> range:
    """Return the layers from the first to the last one that is pruned."""
    pruned = [index for index, share in enumerate(shares) if share > 0]
    return range(pruned[0], pruned[-1] + 1) if pruned else range(0)


def _prune_layer(layer: nn.Module, index: int, walk: _Walk) -> LayerReport:
    """Prune one layer and move the stream past it; a layer outside the pruned ones is only reported on."""
    shape = decoder.layer_shape(layer)
    kept = Kept(tuple(range(shape.num_heads)), tuple(range(shape.intermediate_size)))
    # The stream stands in front of the first pruned layer; nobody needs what leaves the last one.
    if index in _pruned_layers(walk.shares):
        generator = torch.Generator().manual_seed(walk.config.seed + 7919 * index)
        visit = LayerVisit(layer, index, walk.stream, walk.taylor[index] if walk.taylor else None, generator)
        kept = prune_sublayers(visit, walk.config, walk.shares[index])
    return LayerReport(
        index=index,
        similarity=walk.similarities[index] if walk.similarities else None,
        share=walk.shares[index],
        kept_heads=kept.heads,
        num_heads=shape.num_heads,
        kept_channels=kept.channels,
        intermediate_size=shape.intermediate_size,
        head_similarity=kept.head_similarity,
    )


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
            "the original model with a larger base_share"
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
    needs_rank = config.ffn_unit != "none" and channel_criterion(config) == "feature_space"
    if needs_rank and stream.num_tokens < 2 * width:
        warnings.warn(
            f"{stream.num_tokens} calibration tokens for hidden size {width}: below {2 * width} the output's "
            "covariance is close to singular and its mean eigenvalue says little; calibrate on more tokens",
            stacklevel=3,
        )
