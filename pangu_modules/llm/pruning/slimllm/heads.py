"""Pruning the heads of one attention on the stream of the already pruned layers below (SlimLLM, arXiv:2505.22689)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from pangu_modules.llm.calibration.statistics import StreamingCovariance, exact_device, wide
from pangu_modules.llm.calibration.stream import Stream, caught_input, not_finite
from pangu_modules.llm.models import decoder
from pangu_modules.llm.pruning import surgery
from pangu_modules.llm.pruning.slimllm.criteria import HeadCriterion, HeadStatistics, head_scores, unit_scores
from pangu_modules.llm.pruning.slimllm.regression import Recovery, fit, fold_affine, ridge_matrix
from pangu_modules.llm.pruning.slimllm.search import UnitGram, remove_lowest, remove_units

HeadUnit = Literal["kv_group", "query"]


def prune_heads(
    layer: nn.Module,
    layer_index: int,
    stream: Stream,
    *,
    unit: HeadUnit,
    num_remove: int,
    criterion: HeadCriterion,
    greedy: bool,
    recovery: Recovery,
    ridge: float,
    taylor: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[list[int], float]:
    """Remove heads, repair `o_proj`, and move the stream past the attention (residual added).

    Args:
        layer: decoder layer, changed in place.
        layer_index: its number, for its kind of attention and for messages.
        stream: calibration tokens in front of the layer.
        unit: ``kv_group`` removes whole groups, ``query`` the same number of query heads from every group.
        num_remove: KV groups to remove, or query heads to remove from every group.
        criterion: importance of heads.
        greedy: exchange heads greedily (``pearson`` only).
        recovery: repair of `o_proj`.
        ridge: mu of ``full_ridge``.
        taylor: (num_heads,) for the ``taylor`` criterion.
        generator: for the ``random`` criterion.

    Returns:
        The kept query heads in the numbering before, and the mean over output dimensions of the correlation between
        the kept heads' output and the whole output.

    Raises:
        ValueError: an activation is not finite.
    """
    shape = decoder.layer_shape(layer)
    attention: Any = layer.self_attn
    inputs, statistics = _observe(layer, layer_index, stream)
    statistics.taylor, statistics.generator = taylor, generator
    num_units, num_groups = (shape.num_kv_heads, 1) if unit == "kv_group" else (shape.num_heads, shape.num_kv_heads)
    gram = UnitGram.of(statistics.inputs, attention.o_proj.weight, num_units)
    if criterion == "pearson":
        kept = remove_units(gram, num_remove, greedy=greedy, num_groups=num_groups)
    else:
        scores = unit_scores(head_scores(criterion, attention, statistics), num_units)
        kept = remove_lowest(scores, num_remove, num_groups)
    width = shape.num_heads * shape.head_dim // num_units
    columns = (torch.tensor(kept)[:, None] * width + torch.arange(width)).flatten()
    whole_weight = attention.o_proj.weight.detach()
    if unit == "kv_group":
        surgery.keep_kv_groups(layer, kept)
    else:
        surgery.keep_query_heads(layer, kept)
    if recovery == "full_ridge":
        _solve_ridge(attention.o_proj, statistics.inputs, whole_weight, columns, ridge)
    elif recovery != "none":
        fold_affine(attention.o_proj, *_repair(recovery, gram, kept, attention.o_proj))
    for index, values in enumerate(inputs):
        output = attention.o_proj(values.index_select(-1, columns.to(values.device)))
        stream.hidden[index] += output
    heads = [int(start) // shape.head_dim for start in columns[:: shape.head_dim]]
    return heads, gram.similarity(kept) / gram.gram.shape[0]


def _observe(layer: nn.Module, layer_index: int, stream: Stream) -> tuple[list[Tensor], HeadStatistics]:
    """Run the attention up to `o_proj`; return its inputs per batch and their statistics."""
    shape = decoder.layer_shape(layer)
    attention: Any = layer.self_attn
    device = attention.o_proj.weight.device
    covariance = StreamingCovariance(shape.num_heads * shape.head_dim, device)
    norms = torch.zeros(shape.num_heads, dtype=torch.float64, device=exact_device(device))
    inputs = []
    for index in range(len(stream)):
        values = caught_input(attention.o_proj, stream.run_attention, layer, layer_index, index)
        tokens = wide(stream.tokens(index, values))
        covariance.update(tokens)
        norms += tokens.unflatten(1, (shape.num_heads, -1)).norm(dim=2).sum(0).to(norms)
        inputs.append(stream.keep(index, values))
    if not bool(covariance.products.isfinite().all()):
        raise not_finite(layer_index, "attention output")
    return inputs, HeadStatistics(shape=shape, inputs=covariance, norms=norms)


def _repair(recovery: Recovery, gram: UnitGram, kept: list[int], o_proj: Any) -> tuple[Tensor, Tensor]:
    """Fit the whole output on the kept units' output; a bias the layer already has belongs to both."""
    moments = gram.fit_moments(kept)
    if o_proj.bias is not None:
        bias = o_proj.bias.detach().to(moments.mean_u)
        moments = moments._replace(mean_u=moments.mean_u + bias, mean_y=moments.mean_y + bias)
    return fit(recovery, moments)


def _solve_ridge(o_proj: Any, inputs: StreamingCovariance, whole_weight: Tensor, columns: Tensor, ridge: float) -> None:
    second_moment = inputs.second_moment
    rows = second_moment[columns.to(second_moment.device)]
    products = rows @ whole_weight.to(rows).T
    matrix = ridge_matrix(rows[:, columns.to(rows.device)], products, ridge)
    o_proj.weight.copy_(matrix)
