"""Physical removal of query heads, KV groups, FFN channels, hidden channels and layers of a transformers decoder.

Every function changes the model in place and keeps its modules (hooks and names survive); only tensors shrink. What
remains computes exactly what the whole model computes with the removed parts masked to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pangu_modules.llm.models.decoder import (
    backbone,
    decoder_layers,
    hidden_size,
    layer_records,
    layer_shape,
    output_biases,
    output_projections,
    projections,
)


def keep_query_heads(layer: nn.Module, heads: Sequence[int]) -> None:
    """Keep the query heads with these indices, the same number from every KV group; KV heads stay.

    Raises:
        ValueError: an index is out of range or doubled, or the groups would have unequal sizes: attention maps query
            head i to KV head ``i // (num_heads / num_kv_heads)``, so unequal groups compute nonsense silently.
    """
    shape = layer_shape(layer)
    kept = _checked(heads, shape.num_heads, "query heads")
    per_group = [sum(head // shape.queries_per_group == group for head in kept) for group in range(shape.num_kv_heads)]
    if len(set(per_group)) > 1:
        raise ValueError(
            f"keep_query_heads would leave {per_group} query heads in the {shape.num_kv_heads} KV groups: keep the "
            "same number in every group, or remove whole groups with keep_kv_groups"
        )
    attention: Any = layer.self_attn
    rows = _blocks(kept, shape.head_dim)
    _slice_linear(attention.q_proj, rows=rows)
    _slice_linear(attention.o_proj, columns=rows)
    _refresh_attention(attention, len(kept), shape.num_kv_heads)


def keep_kv_groups(layer: nn.Module, groups: Sequence[int]) -> None:
    """Keep the KV heads with these indices together with their query heads and `o_proj` columns.

    Raises:
        ValueError: an index is out of range or doubled, or none is kept.
    """
    shape = layer_shape(layer)
    kept = _checked(groups, shape.num_kv_heads, "KV groups")
    attention: Any = layer.self_attn
    query_rows = _blocks(kept, shape.queries_per_group * shape.head_dim)
    key_rows = _blocks(kept, shape.head_dim)
    _slice_linear(attention.q_proj, rows=query_rows)
    _slice_linear(attention.k_proj, rows=key_rows)
    _slice_linear(attention.v_proj, rows=key_rows)
    _slice_linear(attention.o_proj, columns=query_rows)
    _refresh_attention(attention, len(kept) * shape.queries_per_group, len(kept))


def keep_channels(layer: nn.Module, channels: Sequence[int]) -> None:
    """Keep the FFN channels with these indices (rows of gate and up, columns of down).

    Raises:
        ValueError: an index is out of range or doubled, or none is kept.
    """
    kept = torch.tensor(_checked(channels, layer_shape(layer).intermediate_size, "FFN channels"))
    mlp: Any = layer.mlp
    _slice_linear(mlp.gate_proj, rows=kept)
    _slice_linear(mlp.up_proj, rows=kept)
    _slice_linear(mlp.down_proj, columns=kept)
    if hasattr(mlp, "intermediate_size"):
        mlp.intermediate_size = len(kept)


def keep_hidden(model: nn.Module, channels: Sequence[int]) -> None:
    """Keep the hidden channels with these indices in embedding, norms, projections and head; a tied head stays tied.

    Norm gains are sliced, not rescaled: an RMS norm then divides by the RMS of the kept channels, so this is the one
    removal that equals masking only up to that factor per token.

    Raises:
        ValueError: an index is out of range or doubled, or none is kept.
    """
    kept = torch.tensor(_checked(channels, hidden_size(model), "hidden channels"))
    decoder = backbone(model)
    head: Any = getattr(model, "lm_head", None)
    tied = head is not None and head.weight is decoder.embed_tokens.weight
    decoder.embed_tokens.weight = _sliced(decoder.embed_tokens.weight, 1, kept)
    decoder.embed_tokens.embedding_dim = len(kept)
    for layer in decoder_layers(model):
        _keep_hidden_of_layer(layer, kept)
    decoder.norm.weight = _sliced(decoder.norm.weight, 0, kept)
    if head is not None:
        if tied:
            head.weight = decoder.embed_tokens.weight
            head.in_features = len(kept)
        else:
            _slice_linear(head, columns=kept)


def keep_layers(model: nn.Module, layers: Sequence[int]) -> None:
    """Keep the decoder layers with these indices, in order, and renumber them for the KV cache.

    Raises:
        ValueError: an index is out of range or doubled, or none is kept.
    """
    decoder = backbone(model)
    old = decoder_layers(model)
    kept = _checked(layers, len(old), "layers")
    config = decoder.config
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[index] for index in kept]
        if hasattr(decoder, "has_sliding_layers"):
            decoder.has_sliding_layers = "sliding_attention" in config.layer_types
    config.num_hidden_layers = len(kept)
    decoder.layers = nn.ModuleList([old[index] for index in kept])
    for index, layer in enumerate(decoder.layers):
        layer.self_attn.layer_idx = index


def add_output_biases(layer: nn.Module, *, attention: bool = True, mlp: bool = True) -> None:
    """Give `o_proj` and/or `down_proj` a zero bias where they have none."""
    for wanted, linear in zip((attention, mlp), output_projections(layer), strict=True):
        if wanted and linear.bias is None:
            weight = linear.weight
            linear.bias = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=weight.requires_grad)


def refresh_config(model: nn.Module) -> None:
    """Write the model's present sizes into its transformers configuration.

    Sizes shared by all layers go to their usual fields. Where layers differ, or where output biases exist that the
    architecture cannot express, ``config.layer_shapes`` lists each layer's sizes and the usual fields hold the largest.
    """
    config = backbone(model).config
    layers = decoder_layers(model)
    shapes = [layer_shape(layer) for layer in layers]
    biases = [output_biases(layer) for layer in layers]
    config.hidden_size = hidden_size(model)
    config.num_hidden_layers = len(shapes)
    config.head_dim = shapes[0].head_dim
    config.num_attention_heads = max(shape.num_heads for shape in shapes)
    config.num_key_value_heads = max(shape.num_kv_heads for shape in shapes)
    config.intermediate_size = max(shape.intermediate_size for shape in shapes)
    expected = (bool(getattr(config, "attention_bias", False)), bool(getattr(config, "mlp_bias", False)))
    expressible = config.model_type == "llama" and all(bias == expected for bias in biases)
    plain = expressible or not any(any(bias) for bias in biases)
    if len(set(shapes)) == 1 and plain:
        if hasattr(config, "layer_shapes"):
            del config.layer_shapes
        return
    config.layer_shapes = layer_records(model)


# Helpers.


def _checked(indices: Sequence[int], size: int, what: str) -> list[int]:
    """Return the indices sorted; raise a ValueError if one is doubled or out of range, or none is given."""
    kept = sorted(int(index) for index in indices)
    if not kept:
        raise ValueError(f"nothing would be left: keep at least one of the {size} {what}")
    if kept[0] < 0 or kept[-1] >= size:
        raise ValueError(f"{what} are numbered 0 to {size - 1}, got {kept[0]} to {kept[-1]}")
    if len(set(kept)) < len(kept):
        raise ValueError(f"{what} to keep are named twice: {sorted({i for i in kept if kept.count(i) > 1})}")
    return kept


def _blocks(indices: Sequence[int], width: int) -> Tensor:
    """Return the element indices of the blocks of `width` elements with these block indices."""
    return (torch.tensor(indices)[:, None] * width + torch.arange(width)).flatten()


def _sliced(parameter: Tensor, dim: int, kept: Tensor) -> nn.Parameter:
    data = parameter.detach().index_select(dim, kept.to(parameter.device)).contiguous()
    return nn.Parameter(data, requires_grad=parameter.requires_grad)


def _slice_linear(linear: Any, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    if rows is not None:
        linear.weight = _sliced(linear.weight, 0, rows)
        linear.out_features = len(rows)
        if linear.bias is not None:
            linear.bias = _sliced(linear.bias, 0, rows)
    if columns is not None:
        linear.weight = _sliced(linear.weight, 1, columns)
        linear.in_features = len(columns)


def _refresh_attention(attention: Any, num_heads: int, num_kv_heads: int) -> None:
    """Update what transformers reads from the attention module while running."""
    attention.num_key_value_groups = num_heads // num_kv_heads
    for name, value in (("num_heads", num_heads), ("num_attention_heads", num_heads)):
        if hasattr(attention, name):
            setattr(attention, name, value)
    if hasattr(attention, "num_key_value_heads"):
        attention.num_key_value_heads = num_kv_heads


def _keep_hidden_of_layer(layer: nn.Module, kept: Tensor) -> None:
    for name, linear in projections(layer).items():
        if name.endswith(("o_proj", "down_proj")):
            _slice_linear(linear, rows=kept)
        else:
            _slice_linear(linear, columns=kept)
    # All norms of the layer itself, two in Llama, four in a sandwich; q_norm and k_norm are over head_dim.
    norms: dict[str, Any] = dict(layer.named_children())
    for name, norm in norms.items():
        if name not in ("self_attn", "mlp"):
            norm.weight = _sliced(norm.weight, 0, kept)
    for owner in (layer, layer.mlp):
        if hasattr(owner, "hidden_size"):
            owner.hidden_size = len(kept)
