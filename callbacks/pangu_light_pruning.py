"""PanguLightPruning: width, depth and head pruning with re-initialisation, before training starts."""

from __future__ import annotations

from pydantic import Field

from callbacks.structured_pruning import PruningCallback, PruningConfig
from pangu_modules.llm.pruning.pangu_light_config import PanguLightConfig


class PanguLightPruning(PruningCallback):
    """Pangu Light, and the baselines that are its pipeline with parts switched off (arXiv:2505.20155).

    Recovery is training under the `Distillation` callback, which comes before this one in the recipe.
    """

    class Config(PruningConfig):
        """The shape to prune to, and what to do around it."""

        method: PanguLightConfig = Field(description="Target shape, importance and re-initialisation.")

    config: Config

    @property
    def method(self) -> PanguLightConfig:
        """Pangu Light's settings."""
        return self.config.method
