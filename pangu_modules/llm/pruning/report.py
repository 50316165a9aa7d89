"""PruneReport: what a pruning method did to a model, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LayerReport:
    """What happened to one decoder layer.

    Attributes:
        index: number of the layer in the unpruned model.
        similarity: mean cosine between the layer's input and output in the unpruned model (c_l); None where nothing
            depended on it.
        share: requested share of heads and channels to remove (rho_l).
        kept_heads: kept query heads, numbered as in the unpruned layer.
        num_heads: query heads before.
        kept_channels: kept FFN channels, numbered as in the unpruned layer.
        intermediate_size: FFN channels before.
        head_similarity: mean over output dimensions of the correlation of the kept heads' output with the whole
            attention output; None where no head was removed.
        adopted_heads: query heads it has from dropped layers.
    """

    index: int
    similarity: float | None
    share: float
    kept_heads: tuple[int, ...]
    num_heads: int
    kept_channels: tuple[int, ...]
    intermediate_size: int
    head_similarity: float | None = None
    adopted_heads: int = 0

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> LayerReport:
        """Return the report that was stored as JSON data."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**values)


@dataclass(frozen=True)
class PruneReport:
    """Result of a pruning method.

    Attributes:
        method: name of the method.
        layers: one entry per kept layer, in order.
        kept_layers: indices of the kept layers in the unpruned model.
        parameters_before: parameters of the whole model, a tied head counted once.
        parameters_after: the same after pruning, new biases included.
        calibration_tokens: real tokens used.
    """

    method: str
    layers: tuple[LayerReport, ...]
    kept_layers: tuple[int, ...]
    parameters_before: int
    parameters_after: int
    calibration_tokens: int

    @property
    def removed_share(self) -> float:
        """Realised share of all parameters that were removed."""
        return 1 - self.parameters_after / self.parameters_before

    @property
    def reach(self) -> str:
        """In words, how much of the model was pruned."""
        changed = sum(
            len(layer.kept_heads) < layer.num_heads or len(layer.kept_channels) < layer.intermediate_size
            for layer in self.layers
        )
        return (
            f"{changed} of the {len(self.layers)} layers that stay lost heads or channels, and "
            f"{self.removed_share:.1%} of all parameters are gone"
        )

    def plain(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        return asdict(self) | {"removed_share": self.removed_share}
