"""Reading a transformers decoder: its layers, their projections and sizes, for every family that methods work on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
LINEAR_LAYERS = (*ATTENTION_PROJECTIONS, *MLP_PROJECTIONS)
"""Names of the linear layers of a decoder layer, in all supported families and in this library's own."""

SUPPORTED_MODEL_TYPES: set[str] = {"llama", "mistral", "qwen2", "qwen3"}
"""Architectures with the parts named below; a model of your own with Llama's submodule names may add its type."""


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one decoder layer; ``queries_per_group`` is ``num_heads / num_kv_heads``."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int

    @property
    def queries_per_group(self) -> int:
        """Number of query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads


def check_supported(model: nn.Module) -> None:
    """Raise unless `model` is a floating-point transformers model of a supported architecture.

    Raises:
        ValueError: the architecture is not supported (it is named).
        TypeError: the model is quantised.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if model_type not in SUPPORTED_MODEL_TYPES:
        known = ", ".join(sorted(SUPPORTED_MODEL_TYPES))
        raise ValueError(f"unsupported architecture {model_type!r}: supported are {known}")
    for layer in decoder_layers(model):
        for name, linear in projections(layer).items():
            if not isinstance(linear, nn.Linear) or not linear.weight.is_floating_point():
                raise TypeError(f"{name} is {type(linear).__name__}, a quantised layer: dequantise the model first")


def backbone(model: nn.Module) -> Any:
    """Return the decoder without its language-model head (the module that has `embed_tokens`, `layers`, `norm`)."""
    return getattr(model, "base_model", model)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the list of decoder layers."""
    layers = backbone(model).layers
    assert isinstance(layers, nn.ModuleList)
    return layers


def layer_shape(layer: nn.Module) -> LayerShape:
    """Read the sizes of a decoder layer from its tensors."""
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    head_dim = int(attention.head_dim)
    return LayerShape(
        num_heads=attention.q_proj.out_features // head_dim,
        num_kv_heads=attention.k_proj.out_features // head_dim,
        head_dim=head_dim,
        intermediate_size=mlp.down_proj.in_features,
    )


def hidden_size(model: nn.Module) -> int:
    """Return the width of the residual stream."""
    return int(backbone(model).embed_tokens.embedding_dim)


def projections(layer: nn.Module) -> dict[str, nn.Module]:
    """Return the seven matrices of a decoder layer by their names in it."""
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    return {f"self_attn.{name}": getattr(attention, name) for name in ATTENTION_PROJECTIONS} | {
        f"mlp.{name}": getattr(mlp, name) for name in MLP_PROJECTIONS
    }


def output_biases(layer: nn.Module) -> tuple[bool, bool]:
    """Return whether `o_proj` and `down_proj` have a bias."""
    attention, mlp = output_projections(layer)
    return attention.bias is not None, mlp.bias is not None


def output_projections(layer: nn.Module) -> tuple[Any, Any]:
    """Return `o_proj` and `down_proj`, the two matrices that write to the residual stream."""
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    return attention.o_proj, mlp.down_proj


def layer_records(model: nn.Module) -> list[dict[str, Any]]:
    """Return every layer's sizes and output biases as JSON data."""
    records = []
    for layer in decoder_layers(model):
        attention_bias, mlp_bias = output_biases(layer)
        biases = {"attention_output_bias": attention_bias, "mlp_output_bias": mlp_bias}
        records.append(asdict(layer_shape(layer)) | biases)
    return records
