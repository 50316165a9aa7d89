"""ScaleNetPlan: the expansion of a module's model, as checkpoints store it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field
from torch import nn

from pangu_modules.training.structure import Plan
from pangu_modules.vision.scalenet.config import ScaleNetConfig
from pangu_modules.vision.scalenet.expansion import expand_depth
from pangu_modules.vision.scalenet.unrolling import depth_argument, unroll

if TYPE_CHECKING:
    from pangu_modules.training.module import PanguModule


class ScaleNetPlan(Plan):
    """The expansion of ``module.model`` by shared layers."""

    kind: str = "scalenet"
    expansion: ScaleNetConfig = Field(ScaleNetConfig(), description="How the model is deepened.")

    def apply(self, module: PanguModule) -> None:  # type: ignore[override]
        """Expand ``module.model`` in place; the errors are those of `expand_depth`."""
        expand_depth(module.model, self.expansion)

    def timm_counterpart(self, model: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
        """Return a plain copy of a deepened model, and timm's argument for its depth; the errors are `unroll`'s."""
        plain = unroll(model)
        return plain, depth_argument(plain)
