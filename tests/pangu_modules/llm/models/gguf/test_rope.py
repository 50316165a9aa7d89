"""What llama.cpp computes from the keys is what transformers computes from the parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pangu_modules.llm.models.gguf.rope import Rope, from_gguf, to_gguf

HEAD_DIM, CONTEXT = 64, 4096
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "yarn": {"factor": 8.0, "original_max_position_embeddings": 512},
    "yarn with a temperature": {"factor": 8.0, "original_max_position_embeddings": 512, "attention_factor": 1.5},
    "yarn as DeepSeek has it": {
        "factor": 40.0,
        "original_max_position_embeddings": 512,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
    "llama3": {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 2048,
    },
    "longrope": {
        "factor": 1.0,
        "short_factor": [1.0 + i / 8 for i in range(32)],
        "long_factor": [1.0 + i / 8 for i in range(32)],
        "original_max_position_embeddings": 512,
        "attention_factor": 1.0,
    },
}


def parameters(name: str) -> dict[str, Any]:
    return {"rope_type": name.split(" ")[0], "rope_theta": 500000.0, **KINDS[name]}


def by_transformers(rope: dict[str, Any]) -> tuple[torch.Tensor, float]:
    config = LlamaConfig(head_dim=HEAD_DIM, max_position_embeddings=CONTEXT, rope_parameters=dict(rope))
    embedding = LlamaRotaryEmbedding(config)
    return embedding.inv_freq.double(), embedding.attention_scaling


def by_llama_cpp(rope: Rope) -> tuple[torch.Tensor, float]:
    """ggml's rotary embedding (ggml_rope_yarn), from keys and factors: radians per position, and what multiplies it."""
    keys = rope.keys
    base, kind = keys["rope.freq_base"], keys.get("rope.scaling.type", "none")
    freq_scale = 1 / keys.get("rope.scaling.factor", 1.0)
    attention = keys.get("rope.scaling.attn_factor", 1.0)
    theta = base ** -(torch.arange(0, HEAD_DIM, 2).double() / HEAD_DIM)
    if rope.factors is not None:
        theta = theta / torch.from_numpy(rope.factors).double()
    if kind != "yarn":
        return theta * freq_scale, attention

    def dimension(turns: float) -> float:
        context = keys["rope.scaling.original_context_length"]
        return HEAD_DIM * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(0, math.floor(dimension(32))), min(HEAD_DIM - 1, math.ceil(dimension(1)))
    ramp = 1 - ((torch.arange(HEAD_DIM // 2).double() - low) / max(0.001, high - low)).clamp(0, 1)
    return theta * freq_scale * (1 - ramp) + theta * ramp, attention * (1 + 0.1 * math.log(1 / freq_scale))


@pytest.mark.parametrize("name", KINDS)
def test_frequencies_and_temperature_are_the_same_on_both_sides(name: str) -> None:
    rope = to_gguf(parameters(name), HEAD_DIM)
    wanted, found = by_transformers(parameters(name)), by_llama_cpp(rope)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=0)
    assert found[1] == pytest.approx(wanted[1], rel=1e-6)
    back = from_gguf(rope, HEAD_DIM, CONTEXT)
    again = by_transformers(back)
    torch.testing.assert_close(again[0], wanted[0], rtol=1e-6, atol=0)
    assert again[1] == pytest.approx(wanted[1], rel=1e-6)
    if name in ("default", "linear", "yarn", "llama3"):
        assert back == parameters(name)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type='dynamic'"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}, "rope_type='longrope'"),
    ],
)
def test_what_gguf_cannot_say_is_refused(rope: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_gguf({"rope_theta": 10000.0, **rope}, HEAD_DIM)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        (Rope({"rope.scaling.type": "longrope"}), "rope.scaling.type='longrope'"),
        (Rope({"rope.dimension_count": 32}), "rope.dimension_count is 32"),
        (Rope({}, np.ones(16, np.float32)), "has 16 factors for heads of 64"),
        (Rope({"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, np.ones(32, np.float32)), "at once"),
        (Rope({"rope.scaling.attn_factor": 2.0}), "attn_factor=2.0 is unknown"),
    ],
)
def test_what_transformers_cannot_compute_is_refused(rope: Rope, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_gguf(rope, HEAD_DIM, CONTEXT)
