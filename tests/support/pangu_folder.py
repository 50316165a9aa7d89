"""A tiny model in the form that openPangu Embedded is released in, with code that must not be run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_llm import byte_tokenizer

RELEASED: dict[str, Any] = {
    "architectures": ["PanguEmbeddedForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_openpangu_dense.PanguEmbeddedConfig",
        "AutoModelForCausalLM": "modeling_openpangu_dense.PanguEmbeddedForCausalLM",
    },
    "attention_dropout": 0.0,
    "bias": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "model_type": "PanguEmbedded",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 1,
    "rms_norm_eps": 1e-05,
    "rope_theta": 400.0,  # so small that a wrong one is seen within a few tokens
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.53.2",
    "use_cache": True,
    "vocab_size": 270,
}
CODE = "from pathlib import Path\nPath({mark!r}).touch()\nraise ImportError('No module named torch_npu')\n"


def pangu_folder(folder: Path, *, tokenizer_file: bool = True, **fields: Any) -> dict[str, torch.Tensor]:
    """Write configuration, random weights, tokenizer and code; code that is run leaves a file ``run`` beside them.

    Args:
        folder: to write to.
        tokenizer_file: whether there is a tokenizer.json; the released folders have code alone.
        fields: of ``config.json``, in place of those above.

    Returns:
        The weights, float32.
    """
    config = {**RELEASED, **fields}
    byte_tokenizer(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {
        "tokenizer_class": "PanguTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_openpangu.PanguTokenizer", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if not tokenizer_file:
        (folder / "tokenizer.json").unlink()
    for name in ("configuration_openpangu_dense", "modeling_openpangu_dense", "tokenization_openpangu"):
        (folder / f"{name}.py").write_text(CODE.format(mark=str(folder / "run")))
    (folder / "config.json").write_text(json.dumps(config))
    weights = _weights(config)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return weights


def _weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, around: float = 0.0) -> torch.Tensor:
        spread = 0.3 if len(shape) == 1 else 1.7 / math.sqrt(shape[1])  # outputs of one size at every width
        return around + spread * torch.randn(shape, generator=generator)

    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = (head_dim * config[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
    shapes = {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
    }
    weights = {"model.embed_tokens.weight": random(config["vocab_size"], hidden) * 3}
    for layer in range(config["num_hidden_layers"]):
        start = f"model.layers.{layer}"
        for name, shape in shapes.items():
            weights[f"{start}.self_attn.{name}.weight"] = random(*shape)
            if config["bias"]:
                weights[f"{start}.self_attn.{name}.bias"] = random(shape[0])
        for name, shape in (
            ("gate_proj", (inner, hidden)),
            ("up_proj", (inner, hidden)),
            ("down_proj", (hidden, inner)),
        ):
            weights[f"{start}.mlp.{name}.weight"] = random(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{start}.{name}.weight"] = random(hidden, around=1.0)
    weights["model.norm.weight"] = random(hidden, around=1.0)
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = random(config["vocab_size"], hidden)
    return weights
