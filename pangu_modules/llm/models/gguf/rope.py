"""Rotary embeddings: transformers' ``rope_parameters`` as GGUF's keys and frequency factors, and back.

GGUF knows three ways to stretch a context: one factor for all positions (``linear``), YaRN, and a tensor
``rope_freqs.weight`` with a factor for each frequency, which it is divided by; Llama 3's way is stored as that tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FACTORS = "rope_freqs.weight"
KEYS = (
    "rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor",
    "rope.scaling.original_context_length", "rope.scaling.finetuned", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
)  # fmt: skip
"""Keys that `from_gguf` understands, without the architecture."""

BETA_FAST, BETA_SLOW = 32.0, 1.0  # YaRN's; llama.cpp does not read others from a file
LLAMA3_RANGES = (1.0, 4.0)  # low_freq_factor and high_freq_factor of every released Llama 3
LLAMA3_CONTEXTS = (8192, 4096, 2048, 16384, 32768)


@dataclass(frozen=True)
class Rope:
    """What a file says of rotary embeddings: keys without the architecture, and (head_dim / 2,) factors if any."""

    keys: dict[str, Any] = field(default_factory=dict)
    factors: np.ndarray | None = None


def to_gguf(parameters: Mapping[str, Any], head_dim: int) -> Rope:
    """Return transformers' ``rope_parameters`` of one kind of layer in GGUF's terms.

    Raises:
        ValueError: GGUF cannot say it.
    """
    kind = parameters["rope_type"]
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            "export: GGUF is written for rotary embeddings over the whole head, not partial_rotary_factor="
            f"{parameters['partial_rotary_factor']}"
        )
    base = {"rope.freq_base": float(parameters["rope_theta"]), "rope.dimension_count": head_dim}
    if kind == "default":
        return Rope(base)
    if kind == "linear":
        scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": float(parameters["factor"])}
        return Rope(base | scaling)
    if kind == "yarn":
        return Rope(base | _yarn_keys(parameters))
    if kind == "llama3":
        return Rope(base, llama3_factors(parameters, head_dim).astype(np.float32))
    if kind == "longrope" and _is_one_set_of_factors(parameters):
        return Rope(base, np.array(parameters["long_factor"], dtype=np.float32))
    raise ValueError(
        f"export: GGUF has no keys for rope_type={kind!r} of this model; it holds default, linear, yarn and llama3 "
        "(and longrope with short_factor equal to long_factor and attention_factor=1)"
    )


def from_gguf(rope: Rope, head_dim: int, context_length: int) -> dict[str, Any]:
    """Return transformers' ``rope_parameters``.

    Raises:
        ValueError: the file says something that transformers cannot compute.
    """
    keys = rope.keys
    kind = keys.get("rope.scaling.type", "none")
    dimensions = keys.get("rope.dimension_count", head_dim)
    if dimensions != head_dim:
        raise ValueError(f"rope.dimension_count is {dimensions}, the heads have {head_dim} components")
    base = {"rope_theta": float(keys.get("rope.freq_base", 10000.0))}
    attention = float(keys.get("rope.scaling.attn_factor", 1.0))
    if rope.factors is not None:
        if kind != "none" or attention != 1.0:
            raise ValueError(f"it holds {FACTORS} and rope.scaling.type={kind!r} at once")
        return base | _from_factors(rope.factors, head_dim, base["rope_theta"], context_length)
    if kind == "linear" and attention == 1.0:
        return base | {"rope_type": "linear", "factor": float(keys["rope.scaling.factor"])}
    if kind == "yarn":
        return base | _yarn_parameters(keys, attention, context_length)
    if kind != "none" or attention != 1.0:
        raise ValueError(f"rope.scaling.type={kind!r} with rope.scaling.attn_factor={attention} is unknown")
    return base | {"rope_type": "default"}


def llama3_factors(parameters: Mapping[str, Any], head_dim: int) -> np.ndarray:
    """Return what Llama 3 divides frequencies by, (head_dim / 2,) float64: high ones by 1, low ones by `factor`."""
    frequencies = float(parameters["rope_theta"]) ** -(np.arange(0, head_dim, 2) / head_dim)
    turns = parameters["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high, factor = (float(parameters[name]) for name in ("low_freq_factor", "high_freq_factor", "factor"))
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1 / ((1 - smooth) / factor + smooth)


def _yarn_keys(parameters: Mapping[str, Any]) -> dict[str, Any]:
    factor = float(parameters["factor"])
    keys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": int(parameters["original_max_position_embeddings"]),
    }
    if not parameters.get("truncate", True):
        raise ValueError("export: GGUF's YaRN has whole bounds, which truncate=False of rope_parameters is not")
    own = _yarn_attention(factor)
    attention = parameters.get("attention_factor")
    if attention is None and parameters.get("mscale") and parameters.get("mscale_all_dim"):
        attention = _yarn_attention(factor, parameters["mscale"]) / _yarn_attention(
            factor, parameters["mscale_all_dim"]
        )
    if attention is not None and attention != own:
        keys["rope.scaling.attn_factor"] = float(attention) / own
    for name, built_in in (("beta_fast", BETA_FAST), ("beta_slow", BETA_SLOW)):
        if (parameters.get(name) or built_in) != built_in:
            raise ValueError(f"export: llama.cpp's YaRN has {name}={built_in:g} built in, not {parameters[name]}")
    return keys


def _yarn_parameters(keys: Mapping[str, Any], attention: float, context_length: int) -> dict[str, Any]:
    factor = float(keys["rope.scaling.factor"])
    original = keys.get("rope.scaling.original_context_length", context_length)
    parameters = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": int(original)}
    if attention != 1.0:
        parameters["attention_factor"] = attention * _yarn_attention(factor)
    for name in ("beta_fast", "beta_slow"):
        if f"rope.scaling.yarn_{name}" in keys:
            parameters[name] = float(keys[f"rope.scaling.yarn_{name}"])
    return parameters


def _yarn_attention(factor: float, scale: float = 1.0) -> float:
    """Return what YaRN multiplies sines and cosines by."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _is_one_set_of_factors(parameters: Mapping[str, Any]) -> bool:
    return parameters["long_factor"] == parameters["short_factor"] and parameters.get("attention_factor") == 1.0


def _from_factors(factors: np.ndarray, head_dim: int, theta: float, context_length: int) -> dict[str, Any]:
    """Return Llama 3's parameters if they give these factors, or else the factors themselves."""
    if factors.shape != (head_dim // 2,):
        raise ValueError(
            f"{FACTORS} has {factors.size} factors for heads of {head_dim} components, not {head_dim // 2}"
        )
    low, high = LLAMA3_RANGES
    for original in LLAMA3_CONTEXTS:
        found = {
            "rope_type": "llama3",
            "factor": float(factors.max()),
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }
        expected = llama3_factors({**found, "rope_theta": theta}, head_dim)
        if factors.max() > 1 and original <= context_length and np.allclose(factors, expected, rtol=1e-6, atol=0):
            return found
    given = [float(factor) for factor in factors]
    # longrope is transformers' way to give factors; with two equal sets the length of the text does not matter.
    return {
        "rope_type": "longrope",
        "short_factor": given,
        "long_factor": given,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context_length,
    }
