"""ScaleNet: deepen a pretrained model with layers that share its weights (arXiv:2510.18431).

Layer l' of the deeper model uses the weights of layer g(l') of the pretrained one; small parallel adapters and norms of
its own give every layer instance its character. `expand_depth` changes any model whose residual blocks stand in a
Sequential or ModuleList called ``blocks``: ViT, DeiT and their relatives, and hierarchical models such as Swin, whose
stages are expanded one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import nn

from pangu_modules.vision.scalenet.blocks import (
    Stack,
    branch_width,
    drop_path_children,
    drop_path_rate,
    find_block_stacks,
    norm_children,
    replace_stack,
    set_drop_path,
    weight_children,
)
from pangu_modules.vision.scalenet.config import ScaleNetConfig
from pangu_modules.vision.scalenet.sharing import (
    AdaptedModule,
    ParallelAdapter,
    ResidualGate,
    SharedModule,
    adapter_rank,
)


def layer_mapping(config: ScaleNetConfig, base_depth: int) -> list[int]:
    """Return g: the base layer, counted from 0, of each instance of a stack of `base_depth` blocks.

    Raises:
        ValueError: the target is shallower than the base, or explicit_layers does not cover 0..base_depth-1.
    """
    if config.explicit_layers is not None:
        return _checked_explicit(config.explicit_layers, base_depth)
    depth = config.target_depth or base_depth * (config.depth_factor or 2)
    if depth < base_depth:
        raise ValueError(f"target_depth is {depth}, but the model has {base_depth} blocks already: give at least that")
    cyclic = [layer % base_depth for layer in range(depth)]
    if config.mapping == "adjacent":
        return sorted(cyclic)
    if config.mapping == "reversed":
        backward = [(instance // base_depth) % 2 == 1 for instance in range(depth)]
        return [base_depth - 1 - layer if back else layer for layer, back in zip(cyclic, backward, strict=True)]
    return cyclic


def _checked_explicit(layers: Sequence[int], base_depth: int) -> list[int]:
    wrong = [layer for layer in layers if layer >= base_depth]
    if wrong:
        raise ValueError(f"explicit_layers names layer {wrong[0]}, but the model has layers 0 to {base_depth - 1}")
    missing = sorted(set(range(base_depth)) - set(layers))
    if missing:
        raise ValueError(f"explicit_layers leaves out layer {missing[0]}: every base layer is used at least once")
    return list(layers)


def expand_depth(model: nn.Module, config: ScaleNetConfig) -> nn.Module:
    """Deepen `model` in place by instances that share its blocks' weights.

    Shared are the children of a block that hold matrices (attention, MLP). An added instance is a block of the same
    class with its own norms, layer scales and stochastic depth, the first two copied from the base. The base blocks
    stay where their layer first occurs; the weights of an adapted child move from ``attn.`` to ``attn.module.``.

    Args:
        model: holds stacks of residual blocks as described in this module's docstring, e.g. any timm ViT or Swin.
        config: the expansion.

    Returns:
        The same object.

    Raises:
        ValueError: the model has no such stack, is expanded already, or does not fit the configuration; nothing has
            been changed then.
    """
    if any(isinstance(module, AdaptedModule | SharedModule | ResidualGate) for module in model.modules()):
        raise ValueError("the model is expanded already; expand the base model once, to the depth wanted")
    stacks = find_block_stacks(model)
    if len(stacks) > 1 and (config.target_depth or config.explicit_layers):
        raise ValueError(
            f"target_depth and explicit_layers need one stack of blocks, this model has {', '.join(stacks)}; "
            "use depth_factor, which deepens each"
        )
    if getattr(model, "rope_mixed", False):
        raise ValueError(f"{type(model).__name__} has rotary embeddings per block: added instances would have none")
    mappings = {name: layer_mapping(config, len(stack)) for name, stack in stacks.items()}
    _check_fit(stacks, mappings, config)
    last = config.drop_path
    if last is None:
        last = max(drop_path_rate(block) for stack in stacks.values() for block in stack)
    instances = sum(map(len, mappings.values()))
    rates = iter([last * index / max(1, instances - 1) for index in range(instances)])
    for name, stack in stacks.items():
        expanded = _expand_stack(list(stack), mappings[name], config)
        for block in expanded:
            set_drop_path(block, next(rates))
        replace_stack(model, name, expanded, mappings[name])
    return model


def _check_fit(stacks: Mapping[str, Stack], mappings: Mapping[str, Sequence[int]], config: ScaleNetConfig) -> None:
    for name, stack in stacks.items():
        block = stack[0]
        for child in config.adapter_on:
            width = branch_width(block, child)
            if adapter_rank(config, width) > width:
                raise ValueError(
                    f"adapter_rank is {config.adapter_rank}, larger than the width {width} of {name}.0.{child}; "
                    f"choose at most {width}"
                )
        if (config.identity_start or config.drop_path) and not drop_path_children(block):
            raise ValueError(
                f"identity_start={config.identity_start} and drop_path={config.drop_path} act on the children called "
                f"drop_path* that end a residual branch; {type(block).__name__} of {name!r} has none"
            )
    deeper = any(len(mappings[name]) > len(stack) for name, stack in stacks.items())
    if not deeper and (config.adapter_instances == "added" or not config.adapter_on):
        raise ValueError(
            f"the expansion adds nothing: depth stays {', '.join(str(len(stack)) for stack in stacks.values())} and no "
            "instance gets adapters; raise depth_factor, or set adapter_instances='all' with adapter_on"
        )


def _expand_stack(base: list[nn.Module], mapping: Sequence[int], config: ScaleNetConfig) -> list[nn.Module]:
    seen: set[int] = set()
    blocks: list[nn.Module] = []
    for layer in mapping:
        blocks.append(_added_instance(base[layer], config) if layer in seen else base[layer])
        seen.add(layer)
    # Only now: instances are made from blocks without adapters.
    added = [block for block in blocks if not any(block is owner for owner in base)]
    for block in blocks if config.adapter_instances == "all" else added:
        for name in config.adapter_on:
            child = block.get_submodule(name)
            setattr(block, name, AdaptedModule(child, _adapter(base[0], name, config)))
    return blocks


def _added_instance(owner: nn.Module, config: ScaleNetConfig) -> nn.Module:
    """Return a block like `owner` that refers to the owner's shared children and has copies of the rest."""
    shared = weight_children(owner) if config.share_weights else []
    if config.share_norms:
        shared = [*shared, *norm_children(owner)]
    # What stands in deepcopy's memo counts as copied: the shared children are not duplicated even for a moment.
    block = copy.deepcopy(owner, {id(child): child for name, child in owner.named_children() if name in shared})
    for name in shared:
        setattr(block, name, SharedModule(owner, name))
    if config.identity_start:
        like = next(owner.parameters())
        for name in drop_path_children(block):
            setattr(block, name, ResidualGate(block.get_submodule(name), like.device, like.dtype))
    return block


def _adapter(block: nn.Module, name: str, config: ScaleNetConfig) -> ParallelAdapter:
    width = branch_width(block, name)
    like = next(block.parameters())
    adapter = ParallelAdapter(width, config, device=like.device, dtype=like.dtype)
    return adapter.train(block.training)


def added_parameters(config: ScaleNetConfig, *, width: int, base_depth: int) -> int:
    """Return how many parameters the expansion adds to a ViT of MLP ratio 4 without layer scale.

    A block of width d has 12 d^2 + 13 d parameters, of which 4 d are its norms'; an adapter of rank r 2 d r + r + d.

    Args:
        config: the expansion.
        width: features d of the blocks.
        base_depth: blocks L of the base model.
    """
    depth = len(layer_mapping(config, base_depth))
    added = depth - base_depth
    rank = adapter_rank(config, width)
    adapter = 2 * width * rank + rank + width + int(config.learnable_adapter_scale)
    adapters = len(config.adapter_on) * (depth if config.adapter_instances == "all" else added)
    weights = 0 if config.share_weights else 12 * width**2 + 9 * width
    norms = 0 if config.share_norms else 4 * width
    gates = 2 if config.identity_start else 0
    return adapters * adapter + added * (weights + norms + gates)
