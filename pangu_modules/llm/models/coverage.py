"""Which share of a model a method reaches: said where some of the decoder's weights are beyond it, such as experts."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from pangu_modules.common.parameters import count_parameters


@dataclass(frozen=True)
class Coverage:
    """Weight matrices of a decoder that a method reaches; embedding and head are not counted among them.

    Attributes:
        matrices: reached.
        all_matrices: of the decoder; experts that are stacked in one tensor count one by one.
        parameters: in the matrices reached.
        all_parameters: of the whole model.
    """

    matrices: int
    all_matrices: int
    parameters: int
    all_parameters: int

    def __str__(self) -> str:
        share = 100 * self.parameters / max(1, self.all_parameters)
        return f"{self.matrices} of {self.all_matrices} weight matrices of the layers, {share:.1f} % of all parameters"


def coverage(model: Any, reached: Collection[str]) -> Coverage:
    """Return what of a transformers model lies in the modules named.

    Args:
        model: the model.
        reached: full names of modules whose weight the method changes.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    outside = {id(parameter) for end in ends if end is not None for parameter in end.parameters()}
    matrices = all_matrices = parameters = 0
    for name, parameter in model.named_parameters():
        if parameter.ndim not in (2, 3) or id(parameter) in outside or _is_table(model, name):
            continue
        count = len(parameter) if parameter.ndim == 3 else 1
        all_matrices += count
        if name.rpartition(".")[0] in reached:
            matrices, parameters = matrices + count, parameters + parameter.numel()
    return Coverage(matrices, all_matrices, parameters, count_parameters(model))


def say_share(what: str, model: Any, reached: Collection[str]) -> None:
    """Warn where a method leaves matrices of the decoder's layers as they are, with the share that it reaches.

    Args:
        what: the method and what it does, e.g. ``lora.targets adapt``.
        model: see `coverage`.
        reached: see `coverage`.
    """
    found = coverage(model, reached)
    if found.matrices < found.all_matrices:
        warnings.warn(f"{what} {found}; the others stay as they are", stacklevel=3)


def _is_table(model: nn.Module, name: str) -> bool:
    """Whether a parameter is a table of positions and the like, and no map."""
    return isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding)
