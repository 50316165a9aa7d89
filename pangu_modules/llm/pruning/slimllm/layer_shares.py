"""How much to remove from which layer: SlimLLM's layer-wise share (arXiv:2505.22689, layer-based importance ratio)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pangu_modules.llm.models.decoder import LayerShape


def layer_shares(
    similarities: Sequence[float], base_share: float, num_pruned: int, alpha: float, max_share: float
) -> list[float]:
    """Return the share of heads and channels to remove from each layer.

    The `num_pruned` layers P that change their input least (largest cosine c_l of layer input and output) get
    ``rho_l = base_share * n * softmax_P(alpha c_l)``, all others 0. Shares above `max_share` are cut to it and the
    rest raised in proportion, so that the mean over P stays `base_share`.

    Args:
        similarities: c_l of every layer.
        base_share: mean share over P.
        num_pruned: n, the size of P.
        alpha: sharpness; 0 is uniform over P.
        max_share: largest share of one layer.

    Raises:
        ValueError: more layers are to be pruned than there are, or `base_share` exceeds `max_share`.
    """
    if num_pruned > len(similarities):
        raise ValueError(f"pruned_layers={num_pruned}, but the model has only {len(similarities)} layers")
    if base_share > max_share:
        raise ValueError(f"base_share={base_share} exceeds max_layer_share={max_share}: lower one or raise the other")
    order = sorted(range(len(similarities)), key=lambda layer: -similarities[layer])
    chosen = order[:num_pruned]
    if not chosen:
        return [0.0] * len(similarities)
    peak = max(similarities[layer] for layer in chosen)
    weights = {layer: math.exp(alpha * (similarities[layer] - peak)) for layer in chosen}
    shares = _distributed(weights, base_share * len(chosen), max_share)
    return [shares.get(layer, 0.0) for layer in range(len(similarities))]


def _distributed(weights: dict[int, float], total: float, limit: float) -> dict[int, float]:
    """Distribute `total` in proportion to the weights, no share above `limit`."""
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


def head_units_to_remove(shape: LayerShape, unit: Literal["kv_group", "query"], share: float) -> int:
    """Return how many KV groups, or query heads of every group, a share removes.

    Under grouped-query attention units are coarse, so one always stays.

    Raises:
        ValueError: no head would stay, or there are no query heads to choose from inside a group.
    """
    if unit == "query" and shape.queries_per_group == 1:
        raise ValueError("head_unit='query' needs grouped-query attention; here every head is a group: use 'kv_group'")
    units = shape.num_kv_heads if unit == "kv_group" else shape.queries_per_group
    num_remove = rounded(share * units)
    if shape.queries_per_group > 1:
        return min(num_remove, units - 1)
    if num_remove >= units:
        raise ValueError(f"a share of {share:.3f} leaves none of {units} heads, at least 1 must stay: lower base_share")
    return num_remove


def removed_attention_share(shape: LayerShape, unit: Literal["kv_group", "query"], num_remove: int) -> float:
    """Return the share of the attention's weights that goes with the heads (keys and values stay for ``query``)."""
    if unit == "kv_group":
        return num_remove / shape.num_kv_heads
    rows = 2 * shape.num_heads
    return num_remove / shape.queries_per_group * rows / (rows + 2 * shape.num_kv_heads)


def channels_to_keep(size: int, share: float, multiple: int = 1) -> int:
    """Return how many of `size` channels stay when a share goes, rounded to a multiple (at least one multiple).

    Raises:
        ValueError: no channel would stay.
    """
    kept = size - rounded(share * size)
    if multiple > 1 and kept < size:
        kept = min(size, max(multiple, rounded(kept / multiple) * multiple))
    if kept < 1:
        raise ValueError(f"a share of {share:.3f} leaves none of {size} FFN channels, at least 1 must stay")
    return kept
