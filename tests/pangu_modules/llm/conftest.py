"""Tiny models of every supported architecture."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def tiny_model():
    """Return a function ``(family, tied=False, **config_changes) -> float64 model`` with every tensor randomised."""
    return build_tiny_model


def build_tiny_model(family: str, tied: bool = False, **changes):
    import transformers

    sizes = {
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 28,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    if family == "llama_bias":
        sizes |= {"attention_bias": True, "mlp_bias": True}
    if family in ("qwen2", "qwen3"):
        # Two kinds of layers: removal has to keep each layer's own kind.
        sizes |= {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
    if family == "mistral":
        sizes |= {"sliding_window": 5}
    name = {"llama_bias": "Llama", "llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral"}[family]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = getattr(transformers, f"{name}Config")(**sizes | changes)
        model = getattr(transformers, f"{name}ForCausalLM")(config).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():  # biases start at 0 and gains at 1: make every tensor matter
                parameter.add_(0.15 * torch.randn_like(parameter))
    return model
