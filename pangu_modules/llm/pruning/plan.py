"""ShapePlan: the sizes of a pruned decoder, enough to rebuild its shapes on a freshly built base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, PositiveInt, model_validator
from torch import nn

from pangu_modules.common.config import Config
from pangu_modules.llm.models import decoder
from pangu_modules.llm.pruning import surgery
from pangu_modules.llm.pruning.export.folder import Layout, write_pruned
from pangu_modules.training.structure import Plan


class LayerSizes(Config):
    """Sizes of one decoder layer and which of its output matrices carry a bias."""

    num_heads: PositiveInt = Field(description="Query heads.")
    num_kv_heads: PositiveInt = Field(description="Key/value heads (GQA groups).")
    intermediate_size: PositiveInt = Field(description="FFN channels.")
    attention_output_bias: bool = Field(False, description="o_proj has a bias.")
    mlp_output_bias: bool = Field(False, description="down_proj has a bias.")

    @model_validator(mode="after")
    def _groups_are_equal(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}")
        return self

    @classmethod
    def of(cls, layer: nn.Module) -> LayerSizes:
        """Read the sizes of a layer."""
        shape = decoder.layer_shape(layer)
        attention_bias, mlp_bias = decoder.output_biases(layer)
        return cls(
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            intermediate_size=shape.intermediate_size,
            attention_output_bias=attention_bias,
            mlp_output_bias=mlp_bias,
        )

    def apply(self, layer: nn.Module) -> None:
        """Shrink `layer` to these sizes, keeping the first heads and channels: the weights are loaded afterwards.

        Raises:
            ValueError: the layer is smaller than these sizes, or has a bias that they lack.
        """
        present = LayerSizes.of(layer)
        if present == self:
            return
        self._check_reachable(present)
        surgery.keep_kv_groups(layer, range(self.num_kv_heads))
        shape = decoder.layer_shape(layer)
        per_group = self.num_heads // self.num_kv_heads
        heads = [
            group * shape.queries_per_group + query for group in range(self.num_kv_heads) for query in range(per_group)
        ]
        surgery.keep_query_heads(layer, heads)
        surgery.keep_channels(layer, range(self.intermediate_size))
        surgery.add_output_biases(layer, attention=self.attention_output_bias, mlp=self.mlp_output_bias)

    def _check_reachable(self, present: LayerSizes) -> None:
        per_group = present.num_heads // present.num_kv_heads
        wanted = {
            "num_kv_heads": (self.num_kv_heads, present.num_kv_heads),
            "query heads per group": (self.num_heads // self.num_kv_heads, per_group),
            "intermediate_size": (self.intermediate_size, present.intermediate_size),
        }
        for name, (size, limit) in wanted.items():
            if size > limit:
                raise ValueError(f"the plan wants {name}={size}, the layer has {limit}: build the plan's base model")
        for name in ("attention_output_bias", "mlp_output_bias"):
            if getattr(present, name) and not getattr(self, name):
                raise ValueError(f"the layer has a bias that the plan's {name}=False forbids")


class ShapePlan(Plan):
    """Shapes of a structurally pruned decoder, the result of any pruning method."""

    kind: str = "shape"
    hidden_size: PositiveInt = Field(description="Width of the residual stream.")
    layers: tuple[LayerSizes, ...] = Field(description="Sizes of every kept layer, in order.", min_length=1)
    kept_layers: tuple[int, ...] = Field(
        description="Indices in the base model of the kept layers; they keep their own kind of attention."
    )
    layout: Layout = Field(
        "auto",
        description="Exported form: uniform (all layers equal, a plain transformers model), padded (filled with zeros "
        "to be uniform), per_layer (own sizes and a modelling file), or auto: uniform if possible, else per_layer.",
    )

    @model_validator(mode="after")
    def _one_index_per_layer(self) -> Self:
        if len(self.kept_layers) != len(self.layers):
            raise ValueError(f"{len(self.kept_layers)} kept_layers for {len(self.layers)} layers: give one index each")
        return self

    @classmethod
    def of(
        cls,
        model: nn.Module,
        kept_layers: tuple[int, ...] | None = None,
        source: str = "",
        layout: Layout = "auto",
    ) -> ShapePlan:
        """Read the plan from a pruned model; `kept_layers` None means that no layer was removed."""
        layers = decoder.decoder_layers(model)
        return cls(
            source=source,
            hidden_size=decoder.hidden_size(model),
            layers=tuple(LayerSizes.of(layer) for layer in layers),
            kept_layers=tuple(range(len(layers))) if kept_layers is None else kept_layers,
            layout=layout,
        )

    def apply(self, module: Any) -> None:
        """Shrink ``module.model`` to the plan's shapes; a model that has them already is left alone.

        Raises:
            ValueError: the model's architecture is not supported, or it is smaller than the plan.
        """
        model: nn.Module = module.model
        decoder.check_supported(model)
        if len(decoder.decoder_layers(model)) != len(self.layers):
            surgery.keep_layers(model, self.kept_layers)
        for index, (layer, sizes) in enumerate(zip(decoder.decoder_layers(model), self.layers, strict=True)):
            try:
                sizes.apply(layer)
            except ValueError as error:
                raise ValueError(f"layer {index}: {error}") from error
        if decoder.hidden_size(model) != self.hidden_size:
            surgery.keep_hidden(model, range(self.hidden_size))
        surgery.refresh_config(model)

    def write_model(self, model: nn.Module, folder: Path) -> None:
        """Write the pruned model in this plan's layout; see `export.write_pruned`."""
        write_pruned(model, folder, self.layout)
