"""Names of weights as wrappers change them: torch.compile, DDP, FSDP and peft."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TypeVar

Value = TypeVar("Value")

WRAPPED = (
    (r"(?:^|(?<=\.))_orig_mod\.", ""),  # torch.compile, also of single layers
    (r"(?:^|(?<=\.))_fsdp_wrapped_module\.", ""),
    (r"(?:^|(?<=\.))_checkpoint_wrapped_module\.", ""),
    (r"^_forward_module\.", ""),  # Lightning Fabric
    (r"^module\.", ""),  # DataParallel and DDP
    (r"^base_model\.model\.", ""),  # peft
)
"""Patterns that wrappers put into the names of weights, and what is left of them, in the order to take them off."""


def without_wrappers(state: Mapping[str, Value], own: Collection[str]) -> dict[str, Value]:
    """Return a state dict whose names are a model's own, where they differ from them by wrappers alone.

    Args:
        state: of a checkpoint.
        own: names of the model's weights.
    """
    return {_plain(name) if name not in own and _plain(name) in own else name: value for name, value in state.items()}


def unwrapped(state: Mapping[str, Value]) -> dict[str, Value]:
    """Return a state dict without any wrapper in its names."""
    return {_plain(name): value for name, value in state.items()}


def _plain(name: str) -> str:
    before = None
    while before != name:  # a wrapper may be in another one
        before = name
        for pattern, rest in WRAPPED:
            name = re.sub(pattern, rest, name)
    return name
