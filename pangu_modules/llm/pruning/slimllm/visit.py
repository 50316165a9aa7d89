"""What the pruning of one layer works on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pangu_modules.llm.calibration.stream import Stream
from pangu_modules.llm.pruning.slimllm.taylor import LayerTaylor


@dataclass(frozen=True)
class LayerVisit:
    """One layer, with what is known where the walk stands.

    Attributes:
        layer: decoder layer, changed in place.
        index: its number, for its kind of attention and for messages.
        stream: calibration tokens in front of the sub-layer that is pruned next.
        taylor: for the ``taylor`` criteria; otherwise None.
        generator: for the ``random`` criteria; None is torch's own.
    """

    layer: Any
    index: int
    stream: Stream
    taylor: LayerTaylor | None = None
    generator: torch.Generator | None = None
