"""Counting a model's parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def count_parameters(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Return the number of parameters, tied ones counted once; of those that are trained if asked for."""
    return sum(value.numel() for value in model.parameters() if value.requires_grad or not trainable_only)
