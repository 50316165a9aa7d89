"""Pruning the heads of one attention on the stream of the already pruned layers below (SlimLLM, arXiv:2505.22689)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pangu_modules.llm.calibration.statistics import StreamingCovariance, exact_device, wide
from pangu_modules.llm.calibration.stream import caught_input, not_finite
from pangu_modules.llm.models import decoder
from pangu_modules.llm.pruning import surgery
from pangu_modules.llm.pruning.slimllm.config import SlimLLMConfig
from pangu_modules.llm.pruning.slimllm.criteria import HeadStatistics, head_scores, unit_scores
from pangu_modules.llm.pruning.slimllm.regression import Recovery, fit, fold_affine, ridge_matrix
from pangu_modules.llm.pruning.slimllm.search import UnitGram, remove_lowest, remove_units
from pangu_modules.llm.pruning.slimllm.visit import LayerVisit


def prune_heads(visit: LayerVisit, config: SlimLLMConfig, num_remove: int) -> tuple[list[int], float]:
    """Remove heads, repair `o_proj`, and move the stream past the attention (residual added).

    Args:
        visit: the layer, with the stream in front of it.
        config: unit (``kv_group`` removes whole groups, ``query`` the same number of query heads from every group),
            criterion and repair.
        num_remove: KV groups to remove, or query heads to remove from every group.

    Returns:
        The kept query heads in the numbering before, and the mean over output dimensions of the correlation between
        the kept heads' output and the whole output.

    Raises:
        ValueError: an activation is not finite.
    """
    layer, stream = visit.layer, visit.stream
    by_group = config.head_unit == "kv_group"
    shape = decoder.layer_shape(layer)
    attention: Any = layer.self_attn
    inputs, statistics = _observe(visit)
    num_units, num_groups = (shape.num_kv_heads, 1) if by_group else (shape.num_heads, shape.num_kv_heads)
    gram = UnitGram.of(statistics.inputs, attention.o_proj.weight, num_units)
    if config.head_criterion == "pearson":
        kept = remove_units(gram, num_remove, greedy=config.greedy, num_groups=num_groups)
    else:
        scores = unit_scores(head_scores(config.head_criterion, attention, statistics), num_units)
        kept = remove_lowest(scores, num_remove, num_groups)
    width = shape.num_heads * shape.head_dim // num_units
    columns = (torch.tensor(kept)[:, None] * width + torch.arange(width)).flatten()
    whole_weight = attention.o_proj.weight.detach()
    if by_group:
        surgery.keep_kv_groups(layer, kept)
    else:
        surgery.keep_query_heads(layer, kept)
    if config.recovery == "full_ridge":
        _solve_ridge(attention.o_proj, statistics.inputs, whole_weight, columns, config.ridge)
    elif config.recovery != "none":
        fold_affine(attention.o_proj, *_repair(config.recovery, gram, kept, attention.o_proj))
    for index, values in enumerate(inputs):
        output = attention.o_proj(values.index_select(-1, columns.to(values.device)))
        stream.hidden[index] += output
    heads = [int(start) // shape.head_dim for start in columns[:: shape.head_dim]]
    return heads, gram.similarity(kept) / gram.gram.shape[0]


def _observe(visit: LayerVisit) -> tuple[list[Tensor], HeadStatistics]:
    """Run the attention up to `o_proj`; return its inputs per batch and their statistics."""
    layer, stream = visit.layer, visit.stream
    shape = decoder.layer_shape(layer)
    attention: Any = layer.self_attn
    device = attention.o_proj.weight.device
    covariance = StreamingCovariance(shape.num_heads * shape.head_dim, device)
    norms = torch.zeros(shape.num_heads, dtype=torch.float64, device=exact_device(device))
    inputs = []
    for index in range(len(stream)):
        values = caught_input(attention.o_proj, stream.run_attention, layer, visit.index, index)
        tokens = wide(stream.tokens(index, values))
        covariance.update(tokens)
        norms += tokens.unflatten(1, (shape.num_heads, -1)).norm(dim=2).sum(0).to(norms)
        inputs.append(stream.keep(index, values))
    if not bool(covariance.products.isfinite().all()):
        raise not_finite(visit.index, "attention output")
    taylor = None if visit.taylor is None else visit.taylor.heads
    return inputs, HeadStatistics(shape, covariance, norms, taylor, visit.generator)


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
