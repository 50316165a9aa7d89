"""Pruning the channels of one FFN on the stream of the already pruned layers below (SlimLLM, arXiv:2505.22689).

The whole output is a sum over channels, ``y = u + r``, of what the kept and what the removed ones add. Once y is known,
the pruned output u needs only the smaller of both parts: at SlimLLM's shares a quarter of the FFN. Besides the stream
one more copy of its size is held: y, then u.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pangu_modules.llm.calibration.statistics import ColumnMoments, StreamingCovariance, wide
from pangu_modules.llm.calibration.stream import Stream, caught_input, not_finite
from pangu_modules.llm.pruning import surgery
from pangu_modules.llm.pruning.slimllm.config import SlimLLMConfig
from pangu_modules.llm.pruning.slimllm.criteria import ChannelCriterion, ChannelStatistics, channel_scores
from pangu_modules.llm.pruning.slimllm.regression import ColumnRegression, fit, fold_affine, ridge_matrix
from pangu_modules.llm.pruning.slimllm.visit import LayerVisit


def prune_channels(visit: LayerVisit, config: SlimLLMConfig, num_keep: int) -> list[int]:
    """Remove FFN channels, repair `down_proj`, and move the stream past the FFN (residual added).

    Args:
        visit: the layer, with the stream behind its attention.
        config: criterion, the share of the channels of lowest score that is kept all the same, and repair.
        num_keep: channels to keep.

    Returns:
        The kept channels in the numbering before.

    Raises:
        ValueError: an activation is not finite.
    """
    layer, stream, criterion = visit.layer, visit.stream, channel_criterion(config)
    outputs, statistics = _observe(visit, needs_covariance=criterion == "feature_space")
    scores = channel_scores(criterion, layer.mlp, statistics)
    kept = select_channels(scores, num_keep, config.keep_least_share)
    del statistics  # a covariance, which nobody needs any more
    if config.recovery == "full_ridge":
        surgery.keep_channels(layer, kept)
        _solve_ridge(layer, stream, outputs, config.ridge)
        stream.pass_ffn(layer)
        return kept
    pruned_output = _prune(layer, kept)
    if config.recovery == "none":
        for index, output in enumerate(outputs):
            stream.hidden[index] += pruned_output(_normed(layer, stream, index), output)
    else:
        _regress(layer, stream, outputs, pruned_output, config.recovery)
    return kept


def channel_criterion(config: SlimLLMConfig) -> ChannelCriterion:
    """Return the criterion of FFN channels: without weights of its directions, the feature space has three terms."""
    if config.ffn_criterion == "feature_space" and not config.pca_weighting:
        return "three_term"
    return config.ffn_criterion


def select_channels(scores: Tensor, num_keep: int, keep_least_share: float) -> list[int]:
    """Return the kept channels, ascending: the lowest share stays, the next ones go, the rest stays.

    Args:
        scores: (channels,), larger is more important.
        num_keep: how many stay in all.
        keep_least_share: share of all channels kept at the low end.
    """
    order = torch.sort(scores, stable=True).indices
    lowest = min(num_keep, round(keep_least_share * len(scores)))
    removed = len(scores) - num_keep
    return sorted(torch.cat([order[:lowest], order[lowest + removed :]]).tolist())


def _normed(layer: Any, stream: Stream, index: int) -> Tensor:
    normed: Tensor = layer.post_attention_layernorm(stream.hidden[index])
    return normed


def _observe(visit: LayerVisit, *, needs_covariance: bool) -> tuple[list[Tensor], ChannelStatistics]:
    """Run the FFN; return its outputs per batch and the statistics of its input, activation and output."""
    layer, stream = visit.layer, visit.stream
    mlp = layer.mlp
    device = mlp.down_proj.weight.device
    hidden, channels = mlp.down_proj.weight.shape
    statistics = ChannelStatistics(
        inputs=ColumnMoments(hidden, device),
        activations=ColumnMoments(channels, device),
        outputs=StreamingCovariance(hidden, device) if needs_covariance else None,
        taylor=None if visit.taylor is None else visit.taylor.channels,
        generator=visit.generator,
    )
    outputs = [_observe_batch(layer, stream, index, statistics) for index in range(len(stream))]
    if not bool(statistics.activations.square_sum.isfinite().all()):
        raise not_finite(visit.index, "FFN activation")
    return outputs, statistics


def _observe_batch(layer: Any, stream: Stream, index: int, statistics: ChannelStatistics) -> Tensor:
    """Run the FFN on one batch and add it to the statistics; return its output, which the stream keeps."""
    down = layer.mlp.down_proj
    normed = _normed(layer, stream, index)
    activation = caught_input(down, layer.mlp, normed)
    output = stream.keep(index, down(activation))
    statistics.inputs.update(stream.tokens(index, normed))
    statistics.activations.update(stream.tokens(index, activation))
    if statistics.outputs is not None:
        statistics.outputs.update(stream.tokens(index, output))
    return output


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
    # Surgery replaces weights, it does not change them: the copy may start with the layer's own.
    rest: Any = copy.deepcopy(layer, {id(weight): weight for weight in layer.parameters()})
    surgery.keep_channels(rest, removed)
    surgery.keep_channels(layer, kept)
    rest.mlp.down_proj.bias = None
    return lambda normed, whole: whole - rest.mlp(normed)


def _regress(
    layer: Any,
    stream: Stream,
    outputs: list[Tensor],
    pruned_output: Callable[[Tensor, Tensor], Tensor],
    recovery: Literal["bias", "affine"],
) -> None:
    """Fit the whole outputs on the pruned ones, fold the fit into `down_proj` and move the stream past the FFN."""
    down = layer.mlp.down_proj
    regression = ColumnRegression(down.out_features, down.weight.device)
    for index, output in enumerate(outputs):
        pruned = pruned_output(_normed(layer, stream, index), output)
        regression.update(stream.tokens(index, pruned), stream.tokens(index, output))
        output.copy_(pruned)
    slope, intercept = fit(recovery, regression.moments)
    fold_affine(down, slope, intercept)
    for index, output in enumerate(outputs):
        values = wide(output)
        repaired = torch.addcmul(intercept.to(values), slope.to(values), values)
        stream.hidden[index] += repaired.to(output.dtype)


def _solve_ridge(layer: Any, stream: Stream, outputs: list[Tensor], ridge: float) -> None:
    """Fit a new `down_proj` from the kept activations to the whole outputs."""
    mlp = layer.mlp
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
