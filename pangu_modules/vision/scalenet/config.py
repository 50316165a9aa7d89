"""Configuration of ScaleNet: how a model is deepened, and how the deeper one is trained."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from pangu_modules.common.config import Config


class ScaleNetConfig(Config):
    """How a model is deepened: depth, mapping, adapters, and what each layer instance owns."""

    depth_factor: PositiveInt | None = Field(
        None, description="Depth as a multiple of the model's, L'/L; 2 if target_depth is not given either."
    )
    target_depth: PositiveInt | None = Field(
        None, description="Depth L' in blocks, instead of depth_factor; for models with one stack of blocks."
    )
    mapping: Literal["cyclic", "adjacent", "reversed", "explicit"] = Field(
        "cyclic",
        description="Which base layer an instance uses, g(l'): cyclic 1..L,1..L (the paper); adjacent 1,1,2,2,..; "
        "reversed 1..L,L..1; explicit as explicit_layers says.",
    )
    explicit_layers: tuple[NonNegativeInt, ...] | None = Field(
        None, description="Base layer (from 0) of each instance, every layer at least once; for mapping=explicit."
    )
    adapter_rank: PositiveInt | Literal["auto"] = Field(
        "auto", description="Adapter bottleneck r; auto is 16 for widths up to 384 and 32 above, at most the width."
    )
    adapter_on: tuple[Literal["attn", "mlp"], ...] = Field(
        ("attn", "mlp"), description="Sub-modules with parallel adapters; [] for none."
    )
    adapter_instances: Literal["all", "added"] = Field("all", description="Layer instances with adapters.")
    adapter_activation: Literal["gelu", "none"] = Field("gelu", description="Activation inside the adapters.")
    adapter_init: Literal["kaiming", "linear"] = Field(
        "kaiming",
        description="Start of an adapter's first layer: kaiming, uniform within sqrt(6/d) for width d; linear, torch's "
        "own start of linear layers, within sqrt(1/d).",
    )
    adapter_scale: PositiveFloat = Field(1.0, description="Factor s of an adapter's output.")
    learnable_adapter_scale: bool = Field(False, description="Train one s per adapter, from adapter_scale.")
    share_norms: bool = Field(False, description="Added instances use the base's norms instead of copies of their own.")
    share_weights: bool = Field(True, description="False copies the weights: progressive stacking, a baseline.")
    identity_start: bool = Field(
        False, description="Gate the residual branches of added instances, from 0: the function starts as the base's."
    )
    drop_path: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Stochastic depth rate of the last instance, a linear ramp over all L'; null is the base's.",
    )

    @field_validator("adapter_rank", mode="before")
    @classmethod
    def _refuse_rank_zero(cls, value: Any) -> Any:
        if value == 0:
            raise ValueError("adapter_rank must be at least 1, got 0; for no adapters set adapter_on=[]")
        return value

    @model_validator(mode="after")
    def _check_depth(self) -> Self:
        if self.depth_factor is not None and self.target_depth is not None:
            raise ValueError(
                f"depth_factor={self.depth_factor} and target_depth={self.target_depth} both set the depth; "
                "leave one of them null"
            )
        if (self.mapping == "explicit") != (self.explicit_layers is not None):
            raise ValueError(
                f"mapping={self.mapping!r} with explicit_layers={self.explicit_layers}: "
                "mapping='explicit' and explicit_layers go together; give both or neither"
            )
        if self.explicit_layers is not None and (self.depth_factor or self.target_depth):
            raise ValueError("explicit_layers sets the depth by its length; leave depth_factor and target_depth null")
        if len(set(self.adapter_on)) < len(self.adapter_on):
            raise ValueError(f"adapter_on={list(self.adapter_on)} names a sub-module twice")
        return self


class ScaleNetTraining(ScaleNetConfig):
    """What a module that trains an expanded model adds to the expansion: fields that do not change its shapes."""

    train: Literal["all", "adapters"] = Field(
        "all", description="adapters freezes the pretrained weights; adapters, own norms, gates and head are trained."
    )
    backbone_lr_scale: PositiveFloat = Field(
        1.0, description="Learning rate of the pretrained weights as a multiple of the others'."
    )

    @model_validator(mode="after")
    def _check_train(self) -> Self:
        if self.train == "adapters" and not self.adapter_on:
            raise ValueError("train='adapters' with adapter_on=[]: nothing to train; name some, or train='all'")
        return self

    def expansion(self) -> ScaleNetConfig:
        """Return the expansion alone, with the stochastic depth that the base model is built with."""
        fields = {name: getattr(self, name) for name in ScaleNetConfig.model_fields}
        return ScaleNetConfig(**{**fields, "drop_path": None})
