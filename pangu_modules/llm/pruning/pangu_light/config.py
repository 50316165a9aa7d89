"""Configuration of Pangu Light pruning, and the baselines that are the same pipeline with parts switched off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pangu_modules.common.config import Config
from pangu_modules.common.names import nearest
from pangu_modules.llm.calibration.windows import CalibrationConfig
from pangu_modules.llm.pruning.pangu_light.absorb import AbsorbConfig
from pangu_modules.llm.pruning.pangu_light.importance import Aggregation, HeadScore
from pangu_modules.llm.pruning.pangu_light.slnp import SlnpMode, SlnpNorms
from pangu_modules.llm.pruning.pangu_light.target import TargetShape


class ClapConfig(Config):
    """Cross-layer attention pruning: groups of dropped layers compete with those of the layer below (2.4)."""

    enabled: bool = Field(
        True, description="Merge the best KV groups of dropped layers into kept ones. No sure gain: compare perplexity."
    )
    score_norm: Literal["none", "layer_mean"] = Field(
        "none", description="Compare two layers' group scores as they are, or divided by each layer's mean head score."
    )
    fold_gain: bool = Field(True, description="Fold the ratio of norm gains into the weights of adopted groups.")


class PanguLightConfig(Config):
    """Width, FFN, head and depth pruning with re-initialisation of what stays (arXiv:2505.20155)."""

    renamed = {"calib": "calibration"}

    target: TargetShape | None = Field(None, description="Sizes to prune to; exclusive with target_params.")
    target_params: PositiveFloat | None = Field(
        None,
        description="Parameter budget, up to 1 a share of the model: width, FFN and depth shrink by one ratio.",
    )
    round_to: PositiveInt = Field(1, description="Multiple for hidden and FFN sizes, e.g. 128 for matrix units.")
    depth_criterion: Literal["bi", "ppl"] = Field(
        "bi", description="Layers to drop: lowest block influence, or lowest rise of perplexity without the layer."
    )
    protect_layers: tuple[int, ...] = Field((0, -1), description="Layers never dropped; negative ones from the end.")
    allow_adjacent: bool = Field(True, description="Whether two neighbouring layers may both be dropped.")
    clap: ClapConfig = Field(ClapConfig(), description="What happens to the attention of dropped layers.")
    laco: bool = Field(
        False, description="Baseline: add the parameter differences of dropped layers to the layer below (LaCo)."
    )
    slnp: SlnpMode = Field(
        "slnp", description="Factor on norm gains after width pruning: by gain norms, none, calibrated, or inverse."
    )
    slnp_norms: SlnpNorms = Field("all", description="Norms rescaled; pre_and_final spares a sandwich's post-norms.")
    agg_batch: Aggregation = Field("mean", description="How activation scores of sequences combine.")
    agg_seq: Aggregation = Field("mean", description="How activation scores of a sequence's tokens combine.")
    head_score: HeadScore = Field(
        "norm", description="Head score: norm of its output, or of its contribution after its o_proj columns."
    )
    selection: Literal["score", "random"] = Field(
        "score", description="Keep the best channels, heads and groups, or random ones (control)."
    )
    selection_seed: NonNegativeInt = Field(0, description="Seed of the random selection.")
    calibration: CalibrationConfig = Field(CalibrationConfig(num_samples=1024), description="Calibration text.")
    absorb: AbsorbConfig = Field(AbsorbConfig(), description="Removal of a sandwich model's post-norms.")

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.target is None) == (self.target_params is None):
            given = "both are given" if self.target is not None else "neither is given"
            raise ValueError(f"give exactly one of target (sizes) and target_params (budget); {given}")
        return self

    @model_validator(mode="after")
    def _one_merge(self) -> Self:
        if self.laco and self.clap.enabled:
            raise ValueError("laco and clap.enabled both merge dropped layers: switch one off")
        return self


BASELINES: Mapping[str, Mapping[str, Any]] = {
    "pangu_light": {},
    "clap_only": {"slnp": "none"},
    "slnp_only": {"clap": {"enabled": False}},
    "minitron": {"clap": {"enabled": False}, "slnp": "none", "agg_batch": "l2", "agg_seq": "mean"},
    "laco": {"clap": {"enabled": False}, "slnp": "none", "laco": True},
    "random": {"clap": {"enabled": False}, "slnp": "none", "selection": "random"},
}
"""Changes that turn a configuration into each baseline; all keep its target. ShortGPT is `ShortGPTConfig`."""


def baseline(name: str, config: PanguLightConfig) -> PanguLightConfig:
    """Return `config` changed to the named baseline.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in BASELINES:
        raise ValueError(f"no baseline {name!r}.{nearest(name, BASELINES)} Known: {', '.join(BASELINES)}")
    return config.derive(**BASELINES[name])
