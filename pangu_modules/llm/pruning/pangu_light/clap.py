"""CLAP: cross-layer attention pruning (Pangu Light, arXiv:2505.20155).

The attention of a dropped layer is not thrown away: its KV groups compete with those of the nearest kept layer below,
and the best K' of the pool form that layer's new attention. Groups move whole and are never averaged; the FFN and the
norms of the dropped layer are discarded.

A group moved from layer x to layer r was trained behind x's pre-norm gain. With gain folding, input column c of its
query, key and value rows is multiplied by ``gamma_x[c] / gamma_r[c]``; in a sandwich model row r of its output columns
is multiplied by ``post_gamma_x / post_gamma_r`` too. Gains of a norm over head_dim (Qwen3's q_norm, k_norm) cannot be
folded: there a moved group runs behind the receiver's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pangu_modules.llm.models.decoder import layer_shape
from pangu_modules.llm.pruning.surgery import keep_kv_groups

Group = tuple[int, int]
"""A KV group by the layer it comes from and its index there."""

SMALLEST_GAIN = 1e-6
"""Receiver gains below this are not divided by: the group's columns there stay as they are."""


def assign_groups(
    scores: Tensor, dropped: Sequence[int], num_groups: int, *, adopt: bool = True
) -> dict[int, list[Group]]:
    """Return for every kept layer the KV groups of its new attention, `num_groups` each.

    Dropped layers are taken from the deepest up; each adds its groups to the pool of the nearest kept layer below (of
    the next kept layer above where there is none). A layer's own groups come first, in their order, then adopted ones.

    Args:
        scores: (layers, K), the groups' scores in the whole model.
        dropped: layers that go.
        num_groups: group budget K' of every kept layer.
        adopt: False keeps each layer's own best groups: plain depth pruning.

    Raises:
        ValueError: K' is larger than a pool, or no layer is kept.
    """
    num_layers, available = scores.shape
    kept = [layer for layer in range(num_layers) if layer not in set(dropped)]
    if not kept:
        raise ValueError("every layer is dropped: keep at least one")
    pools: dict[int, list[Group]] = {layer: [(layer, group) for group in range(available)] for layer in kept}
    for layer in sorted(dropped, reverse=True) if adopt else ():
        receiver = max((other for other in kept if other < layer), default=kept[0])
        pools[receiver] += [(layer, group) for group in range(available)]
    return {layer: _best(pool, scores, num_groups, layer) for layer, pool in pools.items()}


@torch.no_grad()
def merge_groups(
    layers: Sequence[nn.Module], receiver: int, groups: Sequence[Group], *, fold_gain: bool = True
) -> None:
    """Rebuild the attention of one layer in place from KV groups of several layers; donors stay as they are.

    A receiver that keeps exactly its own groups is left bit-identical.

    Args:
        layers: decoder layers with equal numbers of query heads per group.
        receiver: index of the layer that gets the groups.
        groups: (layer, group) in the order of the new attention; at most as many as the receiver has.
        fold_gain: fold the ratio of norm gains into the weights of adopted groups.

    Raises:
        ValueError: more groups than the receiver has, or a donor of another shape.
    """
    layer = layers[receiver]
    shape = layer_shape(layer)
    if len(groups) > shape.num_kv_heads:
        raise ValueError(f"layer {receiver} has {shape.num_kv_heads} KV groups and cannot hold {len(groups)}")
    for donor in {donor for donor, _ in groups}:
        other = layer_shape(layers[donor])
        if (other.head_dim, other.queries_per_group) != (shape.head_dim, shape.queries_per_group):
            raise ValueError(f"layer {donor} has groups of another shape than layer {receiver}: {other} and {shape}")
    own = [group for donor, group in groups if donor == receiver]
    if len(own) == len(groups):
        if len(own) < shape.num_kv_heads:
            keep_kv_groups(layer, own)
        return
    pieces = [_group_tensors(layers[donor], layer, group, fold_gain and donor != receiver) for donor, group in groups]
    merged = {name: torch.cat([piece[name] for piece in pieces], dim=-1 if name == OUTPUT else 0) for name in pieces[0]}
    if len(groups) < shape.num_kv_heads:
        keep_kv_groups(layer, range(len(groups)))  # brings the tensors to their new shapes; their values follow
    parameters = dict(layer.named_parameters())
    for name, value in merged.items():
        parameters[name].copy_(value)


# Helpers.

OUTPUT = "self_attn.o_proj.weight"


def _best(pool: list[Group], scores: Tensor, num_groups: int, layer: int) -> list[Group]:
    """Return the best groups of a pool, in the pool's order."""
    if num_groups > len(pool):
        raise ValueError(f"layer {layer} has a pool of {len(pool)} KV groups, {num_groups} are asked for: lower K'")
    values = torch.stack([scores[layer, group] for layer, group in pool])
    order = torch.sort(values, descending=True, stable=True).indices[:num_groups]
    return [pool[index] for index in sorted(order.tolist())]


def _group_tensors(donor: Any, receiver: Any, group: int, fold_gain: bool) -> Mapping[str, Tensor]:
    """Return copies of one group's weights (and biases) by parameter name, with the gains folded."""
    shape = layer_shape(donor)
    width = shape.head_dim * shape.queries_per_group
    queries = slice(group * width, (group + 1) * width)
    keys = slice(group * shape.head_dim, (group + 1) * shape.head_dim)
    attention = donor.self_attn
    tensors = {OUTPUT: attention.o_proj.weight[:, queries]}
    for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        linear = getattr(attention, name)
        tensors[f"self_attn.{name}.weight"] = linear.weight[rows]
        if linear.bias is not None:
            tensors[f"self_attn.{name}.bias"] = linear.bias[rows]
    if fold_gain:
        columns = _gain_ratio(donor.input_layernorm, receiver.input_layernorm)
        for name in ("q_proj", "k_proj", "v_proj"):
            tensors[f"self_attn.{name}.weight"] = tensors[f"self_attn.{name}.weight"] * columns
        if hasattr(receiver, "post_self_attn_layernorm"):
            rows_ratio = _gain_ratio(donor.post_self_attn_layernorm, receiver.post_self_attn_layernorm)
            tensors[OUTPUT] = tensors[OUTPUT] * rows_ratio[:, None]
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _gain_ratio(donor: Any, receiver: Any) -> Tensor:
    small = receiver.weight.abs() < SMALLEST_GAIN
    return torch.where(small, torch.ones_like(receiver.weight), donor.weight / receiver.weight)
