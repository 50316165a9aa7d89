"""DWMConfig: the weighting model and how it learns (Yu et al., arXiv:2507.16178); when it does is the callback's."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat

from pangu_modules.common.config import Config
from pangu_modules.llm.weighting.model import DataWeightingModel


class DWMConfig(Config):
    """The weighting model, its hypergradient and its optimizer."""

    model: DataWeightingModel.Config = Field(DataWeightingModel.Config(), description="The weighting model.")
    engine: Literal["fd", "jvp", "dot", "exact"] = Field(
        "fd",
        description="Hypergradient: fd (two forward passes, any kernel), jvp (forward mode), dot (one backward "
        "pass per sequence), exact (double backward, the reference); jvp and exact need eager attention.",
    )
    fd_scale: float = Field(
        1e-2,
        ge=1e-5,
        le=1,
        description="Norm of the displacement of all parameters, engine fd; 0.1 is better from some 100 M parameters.",
    )
    precondition: Literal["none", "adam"] = Field(
        "adam", description="Step that is looked ahead: SGD, or AdamW with the moments of the optimizer."
    )
    normalize_h: bool = Field(False, description="Scale each batch's hypergradients to mean 0, deviation 1.")
    dwm_lr: PositiveFloat = Field(1e-3, description="Learning rate (AdamW) of the weighting model.")
    sync_weights: bool = Field(
        False, description="Weigh the batches of all processes as one; otherwise each process its own."
    )
