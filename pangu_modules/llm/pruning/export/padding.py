"""Filling a pruned layer with zeros up to larger sizes, without changing what it computes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pangu_modules.llm.models import decoder
from pangu_modules.llm.models.decoder import LayerShape


def pad_layer(layer: nn.Module, target: LayerShape) -> dict[str, Tensor]:
    """Return the layer's projections padded to the sizes of `target`, by their names in the layer.

    Added query heads and channels have zero output columns, so they add nothing. A layer's query heads stay with
    their own KV head: heads are added inside every group, and whole groups behind the last one.

    Args:
        layer: a decoder layer, not changed.
        target: sizes, none smaller than the layer's.
    """
    shape = decoder.layer_shape(layer)
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    head_dim = shape.head_dim
    query = (shape.num_kv_heads, shape.queries_per_group, head_dim)
    query_target = (target.num_kv_heads, target.queries_per_group, head_dim)
    key, key_target = (shape.num_kv_heads, head_dim), (target.num_kv_heads, head_dim)
    channel, channel_target = (shape.intermediate_size,), (target.intermediate_size,)
    padded = _rows("self_attn.q_proj", attention.q_proj, query, query_target)
    padded |= _rows("self_attn.k_proj", attention.k_proj, key, key_target)
    padded |= _rows("self_attn.v_proj", attention.v_proj, key, key_target)
    padded |= _columns("self_attn.o_proj", attention.o_proj, query, query_target)
    padded |= _rows("mlp.gate_proj", mlp.gate_proj, channel, channel_target)
    padded |= _rows("mlp.up_proj", mlp.up_proj, channel, channel_target)
    padded |= _columns("mlp.down_proj", mlp.down_proj, channel, channel_target)
    return padded


def _rows(name: str, linear: nn.Linear, sizes: tuple[int, ...], target: tuple[int, ...]) -> dict[str, Tensor]:
    """Pad output rows, arranged as a grid of `sizes`, to the grid `target`; the bias along with them."""
    tensors = {f"{name}.weight": _padded(linear.weight.detach(), sizes, target)}
    if linear.bias is not None:
        tensors[f"{name}.bias"] = _padded(linear.bias.detach(), sizes, target)
    return tensors


def _columns(name: str, linear: nn.Linear, sizes: tuple[int, ...], target: tuple[int, ...]) -> dict[str, Tensor]:
    """Pad input columns; the bias stays."""
    tensors = {f"{name}.weight": _padded(linear.weight.detach().T, sizes, target).T.contiguous()}
    if linear.bias is not None:
        tensors[f"{name}.bias"] = linear.bias.detach()
    return tensors


def _padded(tensor: Tensor, sizes: tuple[int, ...], target: tuple[int, ...]) -> Tensor:
    grid = tensor.unflatten(0, sizes)
    result = grid.new_zeros(*target, *tensor.shape[1:])
    result[tuple(slice(size) for size in sizes)] = grid
    return result.flatten(0, len(target) - 1).contiguous()
