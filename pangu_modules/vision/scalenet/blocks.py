"""Stacks of residual blocks inside a model: finding them, what their blocks consist of, and replacing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from pangu_modules.vision.scalenet.sharing import ResidualGate

Stack = nn.Sequential | nn.ModuleList


def find_block_stacks(model: nn.Module) -> dict[str, Stack]:
    """Return the model's stacks of blocks by name, in forward order.

    A stack is a Sequential or ModuleList called ``blocks`` whose members are of one class with parameters of equal
    names and shapes, so that one can run in place of another.

    Raises:
        ValueError: there is none, or one called ``blocks`` has members that differ; the message names what was found.
    """
    containers = {
        name: module for name, module in model.named_modules() if isinstance(module, Stack) and len(module) > 0 and name
    }
    stacks = {name: stack for name, stack in containers.items() if name.rpartition(".")[2] == "blocks"}
    if not stacks:
        tried = ", ".join(containers) or "no Sequential or ModuleList at all"
        raise ValueError(
            f"no stack of residual blocks found in {type(model).__name__}: looked for a Sequential or ModuleList "
            f"called 'blocks', found {tried}"
        )
    for name, stack in stacks.items():
        _check_alike(name, stack)
    return stacks


def _check_alike(name: str, stack: Stack) -> None:
    first = stack[0]
    if isinstance(first, Stack):
        raise ValueError(f"{name!r} is no stack of residual blocks: its members are containers, not blocks")
    for index, block in enumerate(stack):
        if type(block) is not type(first) or _shapes(block) != _shapes(first):
            raise ValueError(
                f"the blocks of {name!r} differ: number {index} ({type(block).__name__}) is not shaped like number 0 "
                f"({type(first).__name__}), so they cannot share weights"
            )
        held = [key for key, value in block.named_parameters(recurse=False) if value.ndim >= 2]
        if held:
            raise ValueError(f"{name}.{index} holds the matrix {held[0]!r} itself and not in a child; cannot share it")


def _shapes(block: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in block.named_parameters()}


def weight_children(block: nn.Module) -> list[str]:
    """Return the names of the block's children that hold matrices, e.g. attention and MLP but not norms."""
    return [name for name, child in block.named_children() if any(value.ndim >= 2 for value in child.parameters())]


def norm_children(block: nn.Module) -> list[str]:
    """Return the names of the block's norms."""
    return [name for name, _ in block.named_children() if name.startswith("norm")]


def branch_width(block: nn.Module, name: str) -> int:
    """Return the features that child `name` of a block takes and gives: the width of the block's norms.

    Raises:
        ValueError: there is no such child, or no norm with parameters.
    """
    children = dict(block.named_children())
    if name not in children:
        raise ValueError(f"adapter_on names {name!r}, but {type(block).__name__} has {', '.join(children)}")
    widths = [parameter.numel() for norm in norm_children(block) for parameter in children[norm].parameters()]
    if not widths:
        raise ValueError(f"cannot tell the width of {type(block).__name__}: it has no norm with parameters")
    return widths[0]


def drop_path_children(block: nn.Module) -> list[str]:
    """Return the names of the children that end a residual branch with stochastic depth (Identity where it is 0)."""
    return [name for name, _ in block.named_children() if name.startswith("drop_path")]


def drop_path_rate(block: nn.Module) -> float:
    """Return the block's stochastic depth rate, 0 if it has none."""
    return max(
        (getattr(block.get_submodule(name), "drop_prob", 0.0) for name in drop_path_children(block)), default=0.0
    )


def set_drop_path(block: nn.Module, rate: float) -> None:
    """Give every residual branch of the block this stochastic depth rate, inside its gate if it has one."""
    from timm.layers import DropPath

    for name in drop_path_children(block):
        drop_path = DropPath(rate) if rate > 0 else nn.Identity()
        holder = block.get_submodule(name)
        if isinstance(holder, ResidualGate):
            holder.drop_path = drop_path
        else:
            setattr(block, name, drop_path)


def replace_stack(model: nn.Module, name: str, blocks: Sequence[nn.Module], mapping: Sequence[int]) -> None:
    """Put `blocks` in the place of stack `name`, and repeat timm's list of feature maps by `mapping`."""
    parent, _, attribute = name.rpartition(".")
    stack = model.get_submodule(name)
    new = nn.Sequential(*blocks) if isinstance(stack, nn.Sequential) else nn.ModuleList(blocks)
    setattr(model.get_submodule(parent), attribute, new.train(stack.training))
    info = getattr(model, "feature_info", None)
    # timm's ViTs have one entry per block, hierarchical models one per stage.
    if isinstance(info, list) and info and info[0].get("module") == f"{name}.0":
        repeated: Any = [{**info[layer], "module": f"{name}.{index}"} for index, layer in enumerate(mapping)]
        model.feature_info = repeated
