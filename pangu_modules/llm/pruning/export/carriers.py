"""Plain transformers architectures that compute exactly what a pruned model of uniform (or padded) sizes computes.

Pruned models have head counts and output biases that their own architecture may not allow. Llama, Mistral (no sliding
window) and Seed-OSS run the same decoder and differ in what their configuration can say: Llama wants a hidden size
that is a multiple of the head count, and biases on all or no attention projections; Mistral has no biases; Seed-OSS
has any head count and a switch for the output bias alone.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from pangu_modules.llm.models import decoder

PLAIN_ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")

_COMMON_FIELDS = (
    "vocab_size",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "rope_parameters",
)


def carrier_config(model: nn.Module) -> Any:
    """Return the configuration of a plain architecture for the model padded to its largest layer.

    Raises:
        ValueError: no plain architecture expresses the model.
    """
    config = decoder.backbone(model).config
    sizes = _largest_sizes(model)
    biases = _biases(model)
    if _own_architecture_fits(config.model_type, sizes, biases):
        return _resized(config, sizes)
    _refuse_special_attention(model, config)
    return _carrier(config, sizes, biases)


def _largest_sizes(model: nn.Module) -> dict[str, int]:
    shapes = [decoder.layer_shape(layer) for layer in decoder.decoder_layers(model)]
    num_kv_heads = max(shape.num_kv_heads for shape in shapes)
    return {
        "hidden_size": decoder.hidden_size(model),
        "num_hidden_layers": len(shapes),
        # Padding fills groups, so the largest group size counts, not the largest head count.
        "num_attention_heads": num_kv_heads * max(shape.queries_per_group for shape in shapes),
        "num_key_value_heads": num_kv_heads,
        "head_dim": shapes[0].head_dim,
        "intermediate_size": max(shape.intermediate_size for shape in shapes),
    }


def _biases(model: nn.Module) -> dict[str, bool]:
    """Return which projections have a bias in any layer."""
    linears: dict[str, list[Any]] = {}
    for layer in decoder.decoder_layers(model):
        for name, linear in decoder.projections(layer).items():
            linears.setdefault(name.rpartition(".")[2], []).append(linear)
    return {name: any(linear.bias is not None for linear in group) for name, group in linears.items()}


def _own_architecture_fits(model_type: str, sizes: dict[str, int], biases: dict[str, bool]) -> bool:
    inputs = [biases[name] for name in ("q_proj", "k_proj", "v_proj")]
    mlp = [biases[name] for name in ("gate_proj", "up_proj", "down_proj")]
    attention = [*inputs, biases["o_proj"]]
    if model_type == "llama":
        divides = sizes["hidden_size"] % sizes["num_attention_heads"] == 0
        return divides and len(set(attention)) == 1 and len(set(mlp)) == 1
    if model_type == "qwen2":
        return not biases["o_proj"] and not any(mlp)
    if model_type == "qwen3":
        return len(set(attention)) == 1 and not any(mlp)
    return not any((*attention, *mlp))


def _resized(config: Any, sizes: dict[str, int]) -> Any:
    """Return the model's own configuration with other sizes."""
    data = config.to_dict() | sizes
    data.pop("layer_shapes", None)
    return type(config).from_dict(data)


def _refuse_special_attention(model: nn.Module, config: Any) -> None:
    """Raise a ValueError for attention that only the model's own architecture has."""
    reason = None
    if config.model_type == "qwen3":
        reason = "norms on queries and keys"
    elif getattr(config, "sliding_window", None) is not None:
        reason = "sliding-window attention"
    if reason is not None:
        raise ValueError(
            f"no plain architecture of transformers has both {reason} and the biases that pruning added: export with "
            'layout "per_layer", or prune with recovery="none"'
        )


def _carrier(config: Any, sizes: dict[str, int], biases: dict[str, bool]) -> Any:
    from transformers import AutoConfig

    data = {name: getattr(config, name) for name in (*_COMMON_FIELDS, "pruned_with") if hasattr(config, name)} | sizes
    data["attention_dropout"] = getattr(config, "attention_dropout", 0.0)
    attention = any(biases[name] for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    mlp = any(biases[name] for name in ("gate_proj", "up_proj", "down_proj"))
    if sizes["hidden_size"] % sizes["num_attention_heads"] == 0:
        return AutoConfig.for_model("llama", **data, attention_bias=attention, mlp_bias=mlp)
    if not attention and not mlp:
        return AutoConfig.for_model("mistral", **data, sliding_window=None)
    return AutoConfig.for_model(
        "seed_oss",
        **data,
        attention_bias=any(biases[name] for name in ("q_proj", "k_proj", "v_proj")),
        attention_out_bias=biases["o_proj"],
        mlp_bias=mlp,
        residual_dropout=0.0,
    )
