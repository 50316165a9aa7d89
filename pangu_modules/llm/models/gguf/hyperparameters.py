"""A model's sizes and settings as GGUF's keys, and back. Keys are written here without the architecture's name.

What one side says and the other cannot is an error, in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pangu_modules.llm.models.gguf import rope
from pangu_modules.llm.models.gguf.families import (
    FAMILIES,
    FULL_ATTENTION,
    LLAMA_LIKE,
    SLIDING_ATTENTION,
    Family,
    head_dim_of,
)

LOCAL_THETA = "rope.freq_base_swa"
SOFTCAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}  # what llama.cpp takes where none is given
GEMMA_PERIODS = {"gemma2": 2, "gemma3": 6}  # every how many layers one sees all positions
GEMMA_27B = {"gemma2": 46, "gemma3": 62}  # depth by which llama.cpp knows the models that scale attention otherwise
UNDERSTOOD = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "vocab_size",
    "attention.layer_norm_rms_epsilon", "attention.sliding_window", *SOFTCAPS, LOCAL_THETA, *rope.KEYS,
)  # fmt: skip
REQUIRED = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Sizes of one decoder layer."""

    num_heads: int
    num_kv_heads: int
    feed_forward: int


@dataclass(frozen=True)
class Header:
    """What a file says of a model beside its tensors."""

    family: Family
    keys: dict[str, Any]
    layers: tuple[Sizes, ...]
    rope: rope.Rope


def describe(config: Any, layers: tuple[Sizes, ...], biases: set[str]) -> Header:
    """Return what to write for a transformers model.

    Args:
        config: its configuration.
        layers: sizes of every layer, as its tensors have them.
        biases: the projections that have a bias in some layer.

    Raises:
        ValueError: no architecture of GGUF computes the same.
    """
    family = _family_for(config, layers, biases)
    head_dim = head_dim_of(config)
    parameters = config.rope_parameters
    keys: dict[str, Any] = {
        "block_count": len(layers),
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "vocab_size": config.vocab_size,
    } | _sizes(family, layers)
    if family.architecture in GEMMA_PERIODS:
        keys |= _gemma_keys(family, config, len(layers))
    if family.architecture == "gemma3":
        local, parameters = parameters[SLIDING_ATTENTION], parameters[FULL_ATTENTION]
        if local["rope_type"] != "default" or parameters["rope_type"] not in ("default", "linear"):
            raise ValueError("export: GGUF's gemma3 holds rope types default and linear, and default where it slides")
        keys[LOCAL_THETA] = float(local["rope_theta"])
    found = rope.to_gguf(parameters, head_dim)
    if found.factors is not None and not family.frequency_factors:
        raise ValueError(
            f"export: llama.cpp's {family.architecture} takes no frequency factors, which "
            f"rope_type={parameters['rope_type']!r} needs; it takes default, linear and yarn"
        )
    return Header(family, keys | found.keys, layers, found)


def understand(architecture: str, keys: Mapping[str, Any], factors: Any) -> Header:
    """Return a file's header, checked.

    Args:
        architecture: one of `FAMILIES`.
        keys: those of the architecture, without its name.
        factors: the values of ``rope_freqs.weight``, or None.

    Raises:
        ValueError: a key is missing, or says what the model cannot be told.
    """
    family = FAMILIES[architecture]
    missing = [name for name in REQUIRED if name not in keys]
    if missing:
        raise ValueError(f"it has no {architecture}.{missing[0]}")
    unknown = [name for name, value in keys.items() if name not in UNDERSTOOD and value not in (0, False, "none", None)]
    if unknown:
        raise ValueError(f"it sets {architecture}.{unknown[0]}={keys[unknown[0]]!r}, which the model would ignore")
    count = int(keys["block_count"])
    heads, feed_forward = (_each(keys[name], count) for name in ("attention.head_count", "feed_forward_length"))
    kv_heads = _each(keys.get("attention.head_count_kv", heads), count)
    layers = tuple(Sizes(*sizes) for sizes in zip(heads, kv_heads, feed_forward, strict=True))
    if any(0 in (layer.num_heads, layer.num_kv_heads, layer.feed_forward) for layer in layers):
        raise ValueError("it has layers without attention or without a feed-forward block")
    if not family.pairs and len(set(layers)) > 1:
        raise ValueError(f"its layers differ in size, which transformers' {family.model_type} cannot be told")
    rope_keys = {name: value for name, value in keys.items() if name in rope.KEYS}
    return Header(family, dict(keys), layers, rope.Rope(rope_keys, factors))


def model_fields(header: Header) -> dict[str, Any]:
    """Return the fields of transformers' configuration; sizes that differ between layers are the largest ones.

    Raises:
        ValueError: transformers cannot compute what the file says.
    """
    keys, layers = header.keys, header.layers
    kv_heads = max(layer.num_kv_heads for layer in layers)
    heads = kv_heads * max(layer.num_heads // layer.num_kv_heads for layer in layers)
    head_dim = int(keys.get("attention.key_length", keys["embedding_length"] // layers[0].num_heads))
    if keys.get("attention.value_length", head_dim) != head_dim:
        raise ValueError("its keys and values have heads of different widths")
    context = int(keys["context_length"])
    parameters = rope.from_gguf(header.rope, head_dim, context)
    fields = {
        "num_hidden_layers": len(layers),
        "max_position_embeddings": context,
        "hidden_size": int(keys["embedding_length"]),
        "intermediate_size": max(layer.feed_forward for layer in layers),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": float(keys["attention.layer_norm_rms_epsilon"]),
    }
    architecture = header.family.architecture
    if architecture in GEMMA_PERIODS:
        fields |= _gemma_fields(header, head_dim)
    elif keys.get("attention.sliding_window"):
        raise ValueError(f"it sets {architecture}.attention.sliding_window, which llama.cpp itself ignores there")
    if architecture == "gemma3":
        local = {"rope_type": "default", "rope_theta": float(keys.get(LOCAL_THETA, 10000.0))}
        return fields | {"rope_parameters": {FULL_ATTENTION: parameters, SLIDING_ATTENTION: local}}
    return fields | {"rope_parameters": parameters}


def _family_for(config: Any, layers: tuple[Sizes, ...], biases: set[str]) -> Family:
    """Return the family that computes what the model does.

    Raises:
        ValueError: there is none.
    """
    kind = config.model_type
    uniform = len(set(layers)) == 1
    own = next((family for family in FAMILIES.values() if family.model_type == kind), None)
    activation = getattr(config, "hidden_activation", None) or config.hidden_act if own or kind in LLAMA_LIKE else ""
    family = own
    if kind in LLAMA_LIKE:
        # llama.cpp's qwen2 wants its three biases, as wide as the residual stream; its llama takes any.
        plain = uniform and layers[0].num_heads * head_dim_of(config) == config.hidden_size
        if kind != "qwen2" or not plain or own is None or biases != set(own.biases):
            family = FAMILIES["llama" if uniform else "deci"]
    if family is None:
        known = ", ".join(sorted({*LLAMA_LIKE, *(family.model_type for family in FAMILIES.values())}))
        raise ValueError(f"export: GGUF is written for {known}; this model is {kind!r}")
    if activation != family.activation:
        raise ValueError(f"export: GGUF's {family.architecture} computes {family.activation}, not {activation!r}")
    if not uniform and not family.per_layer:
        raise ValueError(
            f"export: GGUF's {family.architecture} needs layers of one size, and this model's differ; only what "
            f"computes as Llama does ({', '.join(LLAMA_LIKE)}) can have layers of different sizes"
        )
    extra = sorted(biases - set(family.biases))
    if extra:
        raise ValueError(f"export: GGUF's {family.architecture} has no bias on {', '.join(extra)}, this model has")
    if family.architecture not in GEMMA_PERIODS:
        _refuse_sliding(config, family)
    return family


def _refuse_sliding(config: Any, family: Family) -> None:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ()
    slides = SLIDING_ATTENTION in kinds if kinds else window is not None
    if slides and window is not None and window < config.max_position_embeddings:
        raise ValueError(
            f"export: llama.cpp's {family.architecture} has no sliding window, this model has sliding_window={window} "
            f"below max_position_embeddings={config.max_position_embeddings}: it would compute something else"
        )


def _sizes(family: Family, layers: tuple[Sizes, ...]) -> dict[str, Any]:
    columns = {
        "attention.head_count": [layer.num_heads for layer in layers],
        "attention.head_count_kv": [layer.num_kv_heads for layer in layers],
        "feed_forward_length": [layer.feed_forward for layer in layers],
    }
    return columns if family.per_layer else {name: column[0] for name, column in columns.items()}


def _each(value: Any, count: int) -> list[int]:
    values = [int(each) for each in value] if isinstance(value, list) else [int(value)] * count
    if len(values) != count:
        raise ValueError(f"it has {count} layers and {len(values)} sizes for them")
    return values


def _gemma_keys(family: Family, config: Any, depth: int) -> dict[str, Any]:
    """Return the keys of Gemma 2 and 3; what llama.cpp has built in must be the model's own."""
    name = family.architecture
    expected = _built_in(name, depth, head_dim_of(config), config.hidden_size // config.num_attention_heads)
    caps = {cap: getattr(config, cap) for cap in SOFTCAPS}
    if (name == "gemma2") != (None not in caps.values()) or (name == "gemma3" and any(caps.values())):
        raise ValueError(f"export: GGUF's gemma2 has both soft caps and gemma3 none, this {name} has {caps}")
    for field, value in expected.items():
        if getattr(config, field) != value:
            raise ValueError(
                f"export: llama.cpp's {name} has {field}={value!r} built in, not {getattr(config, field)!r}"
            )
    if getattr(config, "use_bidirectional_attention", None):
        raise ValueError(f"export: llama.cpp's {name} looks back only, this model has use_bidirectional_attention")
    keys = {cap: float(value) for cap, value in caps.items() if value is not None}
    return keys | {"attention.sliding_window": config.sliding_window}


def _gemma_fields(header: Header, head_dim: int) -> dict[str, Any]:
    name, keys = header.family.architecture, header.keys
    width = int(keys["embedding_length"]) // header.layers[0].num_heads
    fields = _built_in(name, len(header.layers), head_dim, width)
    fields["sliding_window"] = int(keys.get("attention.sliding_window", 4096))
    for cap, usual in SOFTCAPS.items():
        fields[cap] = keys.get(cap, usual if name == "gemma2" else None)
    return fields


def _built_in(name: str, depth: int, head_dim: int, width: int) -> dict[str, Any]:
    """Return what llama.cpp computes for Gemma 2 and 3 without asking the file."""
    period = GEMMA_PERIODS[name]
    return {
        "layer_types": [FULL_ATTENTION if (i + 1) % period == 0 else SLIDING_ATTENTION for i in range(depth)],
        "query_pre_attn_scalar": width if depth == GEMMA_27B[name] else head_dim,
    }
