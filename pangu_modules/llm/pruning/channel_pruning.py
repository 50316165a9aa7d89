"""Pruning the channels of one FFN on the stream of the already pruned layers below (SlimLLM, arXiv:2505.22689)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pangu_modules.llm.pruning import surgery
from pangu_modules.llm.pruning.criteria import ChannelCriterion, ChannelStatistics, channel_scores
from pangu_modules.llm.pruning.regression import ColumnRegression, Recovery, fit, fold_affine, ridge_matrix
from pangu_modules.llm.pruning.statistics import ColumnMoments, StreamingCovariance, wide
from pangu_modules.llm.pruning.stream import Stream, caught_input, not_finite


def prune_channels(
    layer: nn.Module,
    layer_index: int,
    stream: Stream,
    *,
    num_keep: int,
    criterion: ChannelCriterion,
    keep_least_fraction: float,
    recovery: Recovery,
    ridge: float,
    taylor: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> list[int]:
    """Remove FFN channels, repair `down_proj`, and move the stream past the FFN (residual added).

    Args:
        layer: decoder layer, changed in place.
        layer_index: its number, for messages.
        stream: calibration tokens behind the layer's attention.
        num_keep: channels to keep.
        criterion: importance of channels.
        keep_least_fraction: fraction of the channels, those of lowest score, that is kept all the same.
        recovery: repair of `down_proj`.
        ridge: mu of ``full_ridge``.
        taylor: (intermediate,) for the ``taylor`` criterion.
        generator: for the ``random`` criterion.

    Returns:
        The kept channels in the numbering before.

    Raises:
        ValueError: an activation is not finite.
    """
    mlp: Any = layer.mlp
    outputs, statistics = _observe(layer, layer_index, stream, needs_covariance=criterion == "feature_space")
    statistics.taylor, statistics.generator = taylor, generator
    kept = select_channels(channel_scores(criterion, mlp, statistics), num_keep, keep_least_fraction)
    surgery.keep_channels(layer, kept)
    if recovery == "full_ridge":
        _solve_ridge(layer, stream, outputs, ridge)
    if recovery in ("none", "full_ridge"):
        for index in range(len(stream)):
            stream.hidden[index] = stream.hidden[index] + mlp(_normed(layer, stream, index))
        return kept
    slope, intercept = _fit(layer, stream, outputs, recovery)
    fold_affine(mlp.down_proj, slope, intercept)
    for index, output in enumerate(outputs):
        repaired = slope.to(output.device) * output + intercept.to(output.device)
        stream.hidden[index] = stream.hidden[index] + repaired.to(output.dtype)
    return kept


def select_channels(scores: Tensor, num_keep: int, keep_least_fraction: float) -> list[int]:
    """Return the kept channels, ascending: the lowest fraction stays, the next ones go, the rest stays.

    Args:
        scores: (channels,), larger is more important.
        num_keep: how many stay in all.
        keep_least_fraction: fraction of all channels kept at the low end.
    """
    order = torch.sort(scores, stable=True).indices
    lowest = min(num_keep, round(keep_least_fraction * len(scores)))
    removed = len(scores) - num_keep
    return sorted(torch.cat([order[:lowest], order[lowest + removed :]]).tolist())


def _normed(layer: Any, stream: Stream, index: int) -> Tensor:
    normed: Tensor = layer.post_attention_layernorm(stream.hidden[index])
    return normed


def _observe(
    layer: nn.Module, layer_index: int, stream: Stream, needs_covariance: bool
) -> tuple[list[Tensor], ChannelStatistics]:
    """Run the FFN; return its outputs per batch and the statistics of its input, activation and output."""
    mlp: Any = layer.mlp
    device = mlp.down_proj.weight.device
    hidden, channels = mlp.down_proj.weight.shape
    statistics = ChannelStatistics(ColumnMoments(hidden, device), ColumnMoments(channels, device))
    if needs_covariance:
        statistics.outputs = StreamingCovariance(hidden, device)
    outputs = []
    for index in range(len(stream)):
        normed = _normed(layer, stream, index)
        activation = caught_input(mlp.down_proj, mlp, normed)
        output = mlp.down_proj(activation)
        statistics.inputs.update(stream.tokens(index, normed))
        statistics.activations.update(stream.tokens(index, activation))
        if statistics.outputs is not None:
            statistics.outputs.update(stream.tokens(index, output))
        outputs.append(output)
    if not bool(statistics.activations.square_sum.isfinite().all()):
        raise not_finite(layer_index, "FFN activation")
    return outputs, statistics


def _fit(layer: nn.Module, stream: Stream, outputs: list[Tensor], recovery: Recovery) -> tuple[Tensor, Tensor]:
    """Fit the whole outputs on the pruned ones; `outputs` holds the pruned ones afterwards."""
    mlp: Any = layer.mlp
    regression = ColumnRegression(mlp.down_proj.out_features, mlp.down_proj.weight.device)
    for index, whole in enumerate(outputs):
        pruned = mlp(_normed(layer, stream, index))
        regression.update(stream.tokens(index, pruned), stream.tokens(index, whole))
        outputs[index] = pruned
    return fit(recovery, regression.moments)


def _solve_ridge(layer: nn.Module, stream: Stream, outputs: list[Tensor], ridge: float) -> None:
    mlp: Any = layer.mlp
    down = mlp.down_proj
    squares = StreamingCovariance(down.in_features, down.weight.device)
    products = StreamingCovariance(down.in_features, down.weight.device, down.out_features)
    for index, whole in enumerate(outputs):
        normed = _normed(layer, stream, index)
        kept = wide(stream.tokens(index, caught_input(down, mlp, normed)))
        target = stream.tokens(index, whole if down.bias is None else whole - down.bias)
        squares.update(kept)
        products.update(kept, target)
    down.weight.copy_(ridge_matrix(squares.second_moment, products.second_moment, ridge))
