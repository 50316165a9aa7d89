"""Pruning one layer: how many heads and channels go, and attention before FFN on the stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from pangu_modules.llm.models import decoder
from pangu_modules.llm.pruning.slimllm.channels import prune_channels
from pangu_modules.llm.pruning.slimllm.config import SlimLLMConfig
from pangu_modules.llm.pruning.slimllm.heads import prune_heads
from pangu_modules.llm.pruning.slimllm.layer_shares import (
    channels_to_keep,
    head_units_to_remove,
    removed_attention_share,
)
from pangu_modules.llm.pruning.slimllm.visit import LayerVisit


@dataclass(frozen=True)
class Kept:
    """What stayed of a layer, in the numbering before; `head_similarity` as in `LayerReport`."""

    heads: tuple[int, ...]
    channels: tuple[int, ...]
    head_similarity: float | None = None


def prune_sublayers(visit: LayerVisit, config: SlimLLMConfig, share: float) -> Kept:
    """Prune a layer's attention and FFN in place, and move the stream past the layer.

    Args:
        visit: the layer, with the stream in front of it.
        config: units, criteria and repair.
        share: part of heads and channels to remove.

    Raises:
        ValueError: nothing would be left, or an activation is not finite; the layer is named.
    """
    layer, index, stream = visit.layer, visit.index, visit.stream
    shape = decoder.layer_shape(layer)
    heads: list[int] = list(range(shape.num_heads))
    channels: list[int] = list(range(shape.intermediate_size))
    head_similarity = None
    num_remove, num_keep = _counts(layer, index, config, share)
    if num_remove:
        heads, head_similarity = prune_heads(visit, config, num_remove)
    else:
        stream.pass_attention(layer, index)
    if num_keep < shape.intermediate_size:
        channels = prune_channels(visit, config, num_keep)
    else:
        stream.pass_ffn(layer)
    return Kept(tuple(heads), tuple(channels), head_similarity)


def _counts(layer: nn.Module, index: int, config: SlimLLMConfig, share: float) -> tuple[int, int]:
    """Return how many head units go (per group for ``query``) and how many channels stay.

    Raises:
        ValueError: nothing would be left; the layer is named.
    """
    shape = decoder.layer_shape(layer)
    try:
        num_remove = 0 if config.head_unit == "none" else head_units_to_remove(shape, config.head_unit, share)
        if config.ffn_unit == "none":
            return num_remove, shape.intermediate_size
        surplus = 0.0
        if config.balance_to_target and config.head_unit != "none":
            surplus = share - removed_attention_share(shape, config.head_unit, num_remove)
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        per_channel = 3 * mlp.down_proj.out_features
        owed = surplus * _weights(attention) / per_channel
        wanted = share + owed / shape.intermediate_size
        wanted = min(max(wanted, 0.0), config.max_layer_share)
        return num_remove, channels_to_keep(shape.intermediate_size, wanted, config.round_channels_to)
    except ValueError as error:
        raise ValueError(f"layer {index}: {error}") from error


def _weights(module: nn.Module) -> int:
    return sum(child.weight.numel() for child in module.modules() if isinstance(child, nn.Linear))
