"""Pruning the channels of one FFN and repairing it by regression, at the price of little more than one pass through it.

The whole output is a sum over channels, ``y = u + r``, of what the kept and what the removed ones add. Once y is known,
the pruned output u needs only the smaller of both parts: at SlimLLM's ratios a quarter of the FFN (arXiv:2505.22689,
linear regression). Besides the stream one more copy of its size is held: y, then u.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pangu_modules.llm.pruning import surgery
from pangu_modules.llm.pruning.channel_pruning import select_channels
from pangu_modules.llm.pruning.criteria import ChannelCriterion, ChannelStatistics, channel_scores
from pangu_modules.llm.pruning.regression import ColumnRegression, fit, fold_affine
from pangu_modules.llm.pruning.statistics import ColumnMoments, StreamingCovariance, wide
from pangu_modules.llm.pruning.stream import Stream, caught_input, not_finite


def prune_and_regress_channels(
    layer: nn.Module,
    layer_index: int,
    stream: Stream,
    *,
    num_keep: int,
    criterion: ChannelCriterion,
    keep_least_fraction: float,
    recovery: Literal["none", "bias", "affine"],
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
    pruned_output = _prune(layer, kept)
    regression = ColumnRegression(mlp.down_proj.out_features, mlp.down_proj.weight.device)
    for index, whole in enumerate(outputs):
        outputs[index] = pruned_output(_normed(layer, stream, index), whole)
        if recovery != "none":
            regression.update(stream.tokens(index, outputs[index]), stream.tokens(index, whole))
    if recovery != "none":
        slope, intercept = fit(recovery, regression.moments)
        fold_affine(mlp.down_proj, slope, intercept)
        for output in outputs:
            output.copy_(torch.addcmul(intercept.to(wide(output)), slope.to(wide(output)), wide(output)))
    for index, output in enumerate(outputs):
        stream.hidden[index] += output
    return kept


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


def _prune(layer: nn.Module, kept: list[int]) -> Callable[[Tensor, Tensor], Tensor]:
    """Keep these channels; return a function from the FFN's input and whole output to the pruned output.

    Half precision takes no difference: y is rounded there, and the rounding of a large y would be left in a small u.
    """
    mlp: Any = layer.mlp
    channels = mlp.down_proj.in_features
    removed = sorted(set(range(channels)) - set(kept))
    if len(removed) > len(kept) or mlp.down_proj.weight.dtype.itemsize < 4:
        surgery.keep_channels(layer, kept)
        return lambda normed, whole: mlp(normed)
    rest: Any = copy.deepcopy(layer, {id(layer.self_attn): layer.self_attn})
    surgery.keep_channels(layer, kept)
    surgery.keep_channels(rest, removed)
    rest.mlp.down_proj.bias = None
    return lambda normed, whole: whole - rest.mlp(normed)
