"""Sizes of a binarized model in bytes, from shapes alone: a model on the meta device is enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from pangu_modules.common.parameters import count_parameters
from pangu_modules.llm.onebit.config import OneBitConfig
from pangu_modules.llm.onebit.plan import target_names

BFLOAT16, FLOAT32 = 2, 4


@dataclass(frozen=True)
class Sizes:
    """Counts of a model that is binarized, and what its packed file holds.

    Attributes:
        parameters: of the dense model, tied ones once.
        binarized: weights of one bit.
        row_scales: merged scales, one per output channel of a binarized layer.
        input_scales: scales per input channel, where they are not folded.
        scale_bytes: bytes of a row scale; input scales are float32.
    """

    parameters: int
    binarized: int
    row_scales: int
    input_scales: int
    scale_bytes: int = FLOAT32

    @property
    def bytes_per_weight(self) -> float:
        """Bytes per binarized weight: one bit and its share of the scales."""
        return self._binary_bytes / self.binarized

    @property
    def packed_bytes(self) -> int:
        """Bytes of the whole file: one bit per binarized weight, scales, and all else in bfloat16."""
        return round(self._binary_bytes) + BFLOAT16 * (self.parameters - self.binarized)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense model in bfloat16."""
        return BFLOAT16 * self.parameters

    @property
    def _binary_bytes(self) -> float:
        return self.binarized / 8 + self.scale_bytes * self.row_scales + FLOAT32 * self.input_scales


def sizes_of(model: nn.Module, config: OneBitConfig) -> Sizes:
    """Return the sizes of a dense or final model under a configuration.

    Raises:
        ValueError: no layer matches.
    """
    layers: list[Any] = [model.get_submodule(name) for name in target_names(model, config)]
    return Sizes(
        parameters=count_parameters(model),
        binarized=sum(layer.weight.numel() for layer in layers),
        row_scales=sum(layer.weight.shape[0] for layer in layers),
        input_scales=sum(layer.weight.shape[1] for layer in layers) if config.keeps_input_scale else 0,
        scale_bytes=FLOAT32 if config.scale_dtype == "float32" else 2,
    )
