"""Importance of FFN channels and of attention heads: SlimLLM's channel score and the published baselines.

A criterion is a function of a sub-layer and its statistics on the calibration tokens; larger is more important.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pangu_modules.llm.calibration.statistics import ColumnMoments, StreamingCovariance
from pangu_modules.llm.models.decoder import LayerShape

ChannelCriterion = Literal[
    "feature_space", "three_term", "wanda_down", "magnitude", "activation", "fluctuation", "taylor", "random"
]
HeadCriterion = Literal["pearson", "wanda_output", "magnitude", "activation", "fluctuation", "taylor", "random"]


@dataclass
class ChannelStatistics:
    """What a channel criterion may look at.

    Attributes:
        inputs: moments of x, the FFN's input, (hidden,).
        activations: moments of z, the input of `down_proj`, (intermediate,).
        outputs: covariance of y, the FFN's output, (hidden, hidden); only collected for the feature space.
        taylor: (intermediate,), sum of weight times gradient of the dense model; only collected for ``taylor``.
        generator: source of the ``random`` criterion.
    """

    inputs: ColumnMoments
    activations: ColumnMoments
    outputs: StreamingCovariance | None = None
    taylor: Tensor | None = None
    generator: torch.Generator | None = None


@dataclass
class HeadStatistics:
    """What a head criterion may look at.

    Attributes:
        shape: sizes of the layer.
        inputs: covariance of z, the input of `o_proj`, (num_heads * head_dim,) squared.
        norms: (num_heads,), each head's output norm before `o_proj`, summed over tokens.
        taylor: (num_heads,), sum of weight times gradient of the dense model; only collected for ``taylor``.
        generator: source of the ``random`` criterion.
    """

    shape: LayerShape
    inputs: StreamingCovariance
    norms: Tensor
    taylor: Tensor | None = None
    generator: torch.Generator | None = None


def channel_scores(criterion: ChannelCriterion, mlp: Any, statistics: ChannelStatistics) -> Tensor:
    """Return the importance of every FFN channel, (intermediate,), float64 on the statistics' device."""
    scores = _CHANNEL_CRITERIA[criterion](mlp, statistics)
    return scores.to(statistics.activations.sum)


def head_scores(criterion: HeadCriterion, attention: Any, statistics: HeadStatistics) -> Tensor:
    """Return the importance of every query head, (num_heads,); the ``taylor`` score keeps its sign.

    ``pearson`` judges sets of heads and is found in `search`.
    """
    return _HEAD_CRITERIA[criterion](attention, statistics).to(statistics.norms)


def unit_scores(scores: Tensor, num_units: int) -> Tensor:
    """Return the importance of units of neighbouring heads: the absolute value of their mean, (num_units,)."""
    return scores.unflatten(0, (num_units, -1)).mean(1).abs()


# Channels. W_gate, W_up: (intermediate, hidden); W_down: (hidden, intermediate).


def _matrix(linear: Any, like: Tensor) -> Tensor:
    return linear.weight.detach().to(like)


ROWS = 256
"""Rows that are widened to float64 at a time; all channels at once would take several times the FFN's weights."""


def _row_norms(matrix: Tensor, factor: Tensor, basis: Tensor | None = None) -> Tensor:
    """Return the norms of the rows of ``(matrix basis) * factor``, (rows,), in the factor's precision."""
    norms = []
    for rows in matrix.detach().split(ROWS):
        rows = rows.to(factor)
        norms.append(((rows if basis is None else rows @ basis) * factor).norm(dim=1))
    return torch.cat(norms)


def _input_terms(mlp: Any, statistics: ChannelStatistics) -> Tensor:
    """I_gate + I_up: norms of the rows of W * |x|_c with |x|_c the norm of input column c."""
    norm = statistics.inputs.norm
    return _row_norms(mlp.gate_proj.weight, norm) + _row_norms(mlp.up_proj.weight, norm)


def _wanda_down(mlp: Any, statistics: ChannelStatistics) -> Tensor:
    """|z|_j ||W_down[:, j]||: the structured form of Wanda."""
    norm = statistics.activations.norm
    return norm * _matrix(mlp.down_proj, norm).norm(dim=0)


def _feature_space(mlp: Any, statistics: ChannelStatistics) -> Tensor:
    """SlimLLM: the three terms, with W_down's columns written in the eigenbasis of the output's covariance.

    Each coordinate k is weighted by ``sigmoid(lambda_k / mean lambda)``, which lies in [0.5, 1).
    """
    assert statistics.outputs is not None
    eigenvalues, eigenvectors = torch.linalg.eigh(statistics.outputs.covariance)
    eigenvalues = eigenvalues.abs()
    weights = torch.sigmoid(eigenvalues / eigenvalues.mean().clamp_min(torch.finfo(torch.float64).tiny))
    down_term = statistics.activations.norm * _row_norms(mlp.down_proj.weight.T, weights, eigenvectors)
    return _input_terms(mlp, statistics) + down_term


def _three_term(mlp: Any, statistics: ChannelStatistics) -> Tensor:
    """The three terms without the eigenbasis."""
    return _input_terms(mlp, statistics) + _wanda_down(mlp, statistics)


def _channel_magnitude(mlp: Any, statistics: ChannelStatistics) -> Tensor:
    """Norm of all weights of the channel."""
    like = statistics.activations.sum
    gate, up, down = (_matrix(linear, like) for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    return (gate.square().sum(1) + up.square().sum(1) + down.square().sum(0)).sqrt()


def _channel_fluctuation(mlp: Any, statistics: ChannelStatistics) -> Tensor:
    """FLAP: variance of z times ||W_down[:, j]||^2; meant with ``recovery="bias"``."""
    variance = statistics.activations.variance
    return variance * _matrix(mlp.down_proj, variance).square().sum(0)


def _taylor(sublayer: Any, statistics: Any) -> Tensor:
    """LLM-Pruner, first order: |sum of weight times gradient|."""
    assert statistics.taylor is not None
    scores: Tensor = statistics.taylor
    return scores


def _random_channels(mlp: Any, statistics: ChannelStatistics) -> Tensor:
    return torch.rand(len(statistics.activations.sum), generator=statistics.generator)


_CHANNEL_CRITERIA: dict[str, Callable[[Any, ChannelStatistics], Tensor]] = {
    "feature_space": _feature_space,
    "three_term": _three_term,
    "wanda_down": _wanda_down,
    "magnitude": _channel_magnitude,
    "activation": lambda mlp, statistics: statistics.activations.absolute_sum / statistics.activations.count,
    "fluctuation": _channel_fluctuation,
    "taylor": lambda mlp, statistics: _taylor(mlp, statistics).abs(),
    "random": _random_channels,
}


# Heads. Columns of W_o: (hidden, num_heads * head_dim).


def _per_head(columns: Tensor, statistics: HeadStatistics) -> Tensor:
    """Sum values per input column of o_proj within each head."""
    return columns.unflatten(0, (statistics.shape.num_heads, -1)).sum(1)


def _wanda_output(attention: Any, statistics: HeadStatistics) -> Tensor:
    norm = (statistics.inputs.second_moment.diagonal() * statistics.inputs.count).clamp_min(0).sqrt()
    return _per_head(norm * _matrix(attention.o_proj, norm).norm(dim=0), statistics)


def _head_fluctuation(attention: Any, statistics: HeadStatistics) -> Tensor:
    variance = statistics.inputs.covariance.diagonal()
    return _per_head(variance * _matrix(attention.o_proj, variance).square().sum(0), statistics)


def _head_magnitude(attention: Any, statistics: HeadStatistics) -> Tensor:
    """Norm of the head's own weights and of its group's key and value weights."""
    like = statistics.norms
    shape = statistics.shape
    own = _matrix(attention.q_proj, like).square().sum(1) + _matrix(attention.o_proj, like).square().sum(0)
    shared = _matrix(attention.k_proj, like).square().sum(1) + _matrix(attention.v_proj, like).square().sum(1)
    per_group = shared.unflatten(0, (shape.num_kv_heads, -1)).sum(1)
    return (_per_head(own, statistics) + per_group.repeat_interleave(shape.queries_per_group)).sqrt()


def _random_heads(attention: Any, statistics: HeadStatistics) -> Tensor:
    return torch.rand(statistics.shape.num_heads, generator=statistics.generator)


_HEAD_CRITERIA: dict[str, Callable[[Any, HeadStatistics], Tensor]] = {
    "wanda_output": _wanda_output,
    "magnitude": _head_magnitude,
    "activation": lambda attention, statistics: statistics.norms / statistics.inputs.count,
    "fluctuation": _head_fluctuation,
    "taylor": _taylor,
    "random": _random_heads,
}
