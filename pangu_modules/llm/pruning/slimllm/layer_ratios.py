"""How much to remove from which layer: SlimLLM's layer-wise ratio (arXiv:2505.22689, layer-based importance ratio)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pangu_modules.llm.models.decoder import LayerShape


def layer_ratios(
    similarities: Sequence[float], base_ratio: float, num_pruned: int, alpha: float, max_ratio: float
) -> list[float]:
    """Return the fraction to remove from each layer.

    The `num_pruned` layers P that change their input least (largest cosine c_l of layer input and output) get
    ``rho_l = base_ratio * n * softmax_P(alpha c_l)``, all others 0. Ratios above `max_ratio` are cut to it and the
    rest raised in proportion, so that the mean over P stays `base_ratio`.

    Args:
        similarities: c_l of every layer.
        base_ratio: mean ratio over P.
        num_pruned: n, the size of P.
        alpha: sharpness; 0 is uniform over P.
        max_ratio: largest ratio of one layer.

    Raises:
        ValueError: more layers are to be pruned than there are, or `base_ratio` exceeds `max_ratio`.
    """
    if num_pruned > len(similarities):
        raise ValueError(f"pruned_layers={num_pruned}, but the model has only {len(similarities)} layers")
    if base_ratio > max_ratio:
        raise ValueError(f"base_ratio={base_ratio} exceeds max_layer_ratio={max_ratio}: lower one or raise the other")
    order = sorted(range(len(similarities)), key=lambda layer: -similarities[layer])
    chosen = order[:num_pruned]
    if not chosen:
        return [0.0] * len(similarities)
    peak = max(similarities[layer] for layer in chosen)
    weights = {layer: math.exp(alpha * (similarities[layer] - peak)) for layer in chosen}
    ratios = _shared(weights, base_ratio * len(chosen), max_ratio)
    return [ratios.get(layer, 0.0) for layer in range(len(similarities))]


def _shared(weights: dict[int, float], total: float, limit: float) -> dict[int, float]:
    """Share `total` in proportion to the weights, no share above `limit`."""
    shares: dict[int, float] = {}
    open_weights = dict(weights)
    while open_weights:
        scale = (total - limit * len(shares)) / sum(open_weights.values())
        over = [key for key, weight in open_weights.items() if weight * scale > limit]
        if not over:
            return shares | {key: weight * scale for key, weight in open_weights.items()}
        for key in over:
            shares[key] = limit
            del open_weights[key]
    return shares


def rounded(value: float) -> int:
    """Round half up, so that counts do not depend on parity."""
    return math.floor(value + 0.5)


def head_units_to_remove(shape: LayerShape, unit: Literal["kv_group", "query"], ratio: float) -> int:
    """Return how many KV groups, or query heads of every group, a ratio removes.

    Under grouped-query attention units are coarse, so one always stays.

    Raises:
        ValueError: no head would stay, or there are no query heads to choose from inside a group.
    """
    if unit == "query" and shape.queries_per_group == 1:
        raise ValueError("head_unit='query' needs grouped-query attention; here every head is a group: use 'kv_group'")
    units = shape.num_kv_heads if unit == "kv_group" else shape.queries_per_group
    num_remove = rounded(ratio * units)
    if shape.queries_per_group > 1:
        return min(num_remove, units - 1)
    if num_remove >= units:
        raise ValueError(f"ratio {ratio:.3f} leaves none of {units} heads, at least 1 must stay: lower base_ratio")
    return num_remove


def removed_attention_fraction(shape: LayerShape, unit: Literal["kv_group", "query"], num_remove: int) -> float:
    """Return the fraction of the attention's weights that goes with the heads (keys and values stay for ``query``)."""
    if unit == "kv_group":
        return num_remove / shape.num_kv_heads
    rows = 2 * shape.num_heads
    return num_remove / shape.queries_per_group * rows / (rows + 2 * shape.num_kv_heads)


def channels_to_keep(size: int, fraction: float, multiple: int = 1) -> int:
    """Return how many of `size` channels stay when a fraction goes, rounded to a multiple (at least one multiple).

    Raises:
        ValueError: no channel would stay.
    """
    kept = size - rounded(fraction * size)
    if multiple > 1 and kept < size:
        kept = min(size, max(multiple, rounded(kept / multiple) * multiple))
    if kept < 1:
        raise ValueError(f"ratio {fraction:.3f} leaves none of {size} FFN channels, at least 1 must stay")
    return kept
