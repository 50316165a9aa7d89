"""Configuration of SlimLLM pruning, and the baselines that are the same walk with other importances."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from pangu_modules.common.config import Config
from pangu_modules.llm.calibration.windows import CalibrationConfig
from pangu_modules.llm.pruning.slimllm.criteria import ChannelCriterion, HeadCriterion
from pangu_modules.llm.pruning.slimllm.regression import Recovery


class SlimLLMConfig(Config):
    """How much to prune, by which importance, and how to repair; the defaults are the paper's 20 % setting."""

    renamed = {
        "base_ratio": "base_share",
        "max_layer_ratio": "max_layer_share",
        "keep_least_fraction": "keep_least_share",
        "calib": "calibration",
    }

    base_share: float = Field(
        0.25, ge=0, lt=0.95, description="Mean share of heads and channels removed from the pruned layers."
    )
    pruned_layers: PositiveInt | None = Field(
        None, description="How many layers are pruned, those that change their input least (n); null is 26/32 of all."
    )
    alpha: NonNegativeFloat = Field(
        10.0, description="Sharpness of the softmax over layer similarities; 0 gives every pruned layer base_share."
    )
    max_layer_share: float = Field(0.9, gt=0, lt=1, description="Largest share removed from one layer.")
    head_unit: Literal["kv_group", "query", "none"] = Field(
        "kv_group",
        description="What is removed from attention: whole KV groups, the same number of query heads from every "
        "group, or nothing.",
    )
    ffn_unit: Literal["channel", "none"] = Field("channel", description="What is removed from the FFN.")
    head_criterion: HeadCriterion = Field("pearson", description="Importance of heads.")
    ffn_criterion: ChannelCriterion = Field("feature_space", description="Importance of FFN channels.")
    greedy: bool = Field(True, description="Exchange removed and kept heads greedily (pearson only).")
    pca_weighting: bool = Field(
        True, description="Weight output directions by their variance; off turns feature_space into three_term."
    )
    keep_least_share: float = Field(
        0.01, ge=0, le=0.1, description="Share of FFN channels, those of lowest importance, that is kept anyway."
    )
    recovery: Recovery = Field(
        "affine",
        description="Repair of output matrices: none, bias (FLAP), affine (the paper), full_ridge (not the paper's).",
    )
    ridge: float = Field(1e-3, gt=0, description="Regularisation of full_ridge (mu), relative to the mean diagonal.")
    round_channels_to: PositiveInt = Field(1, description="Kept channels are a multiple of this, e.g. 64 for hardware.")
    balance_to_target: bool = Field(
        True, description="Move what whole heads remove too little or too much to the FFN of the same layer."
    )
    seed: NonNegativeInt = Field(42, description="Seed of the random criteria.")
    calibration: CalibrationConfig = Field(CalibrationConfig(), description="Calibration text.")


# Baselines of the paper and its neighbours in the same walk: changes to SlimLLMConfig, with uniform shares.
_PLAIN: dict[str, Any] = {"alpha": 0.0, "greedy": False, "keep_least_share": 0.0, "recovery": "none"}
BASELINES: dict[str, dict[str, Any]] = {
    "random": _PLAIN | {"head_criterion": "random", "ffn_criterion": "random"},
    "magnitude": _PLAIN | {"head_criterion": "magnitude", "ffn_criterion": "magnitude"},
    "minitron": _PLAIN | {"head_criterion": "activation", "ffn_criterion": "activation"},
    "wanda_sp": _PLAIN | {"head_criterion": "wanda_output", "ffn_criterion": "wanda_down"},
    "flap": _PLAIN | {"head_criterion": "fluctuation", "ffn_criterion": "fluctuation", "recovery": "bias"},
    "llm_pruner": _PLAIN | {"head_criterion": "taylor", "ffn_criterion": "taylor"},
}
