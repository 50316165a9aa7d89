"""A deepened model as a plain one, for timm.

It has a counterpart there where every layer instance can stand as a block of its own: without adapters, which timm's
blocks lack. Shared weights are written once per instance, gates are multiplied into the last matrix of their branch.
With adapters, the formats "onnx" and "safetensors" are the ways to use it.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from pangu_modules.vision.export import OTHER_FORMATS
from pangu_modules.vision.scalenet.blocks import find_block_stacks, weight_children
from pangu_modules.vision.scalenet.sharing import AdaptedModule, ResidualGate, SharedModule


def unroll(model: nn.Module) -> nn.Module:
    """Return a copy of a deepened model in which every layer instance is a plain block with weights of its own.

    Raises:
        ValueError: an instance has adapters, or a gate that cannot be multiplied into its branch.
    """
    plain = copy.deepcopy(model)
    adapted = [name for name, module in plain.named_modules() if isinstance(module, AdaptedModule)]
    if adapted:
        raise ValueError(f"{adapted[0]} has a parallel adapter, which no timm model has; {OTHER_FORMATS}")
    parts = list(plain.modules())
    for block in parts:
        for name, child in list(block.named_children()):
            if isinstance(child, SharedModule):
                setattr(block, name, copy.deepcopy(child.resolve()))
    for block in parts:
        gates = [name for name, child in block.named_children() if isinstance(child, ResidualGate)]
        if gates:
            _fold_gates(block, gates)
    return plain


def _fold_gates(block: nn.Module, gates: list[str]) -> None:
    branches = weight_children(block)
    if len(branches) != len(gates):
        raise ValueError(f"{type(block).__name__} has {len(gates)} gates for {len(branches)} branches; {OTHER_FORMATS}")
    for branch, name in zip(branches, gates, strict=True):
        gate = block.get_submodule(name)
        assert isinstance(gate, ResidualGate)
        last = [module for module in block.get_submodule(branch).modules() if isinstance(module, nn.Linear)][-1]
        with torch.no_grad():
            for parameter in last.parameters():
                parameter.mul_(gate.gate)
        setattr(block, name, gate.drop_path)


def depth_argument(plain: nn.Module) -> dict[str, int | list[int]]:
    """Return timm's argument for the depth of an unrolled model."""
    depths = [len(stack) for stack in find_block_stacks(plain).values()]
    return {"depth": depths[0]} if len(depths) == 1 else {"depths": depths}
