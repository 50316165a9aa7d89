"""Files of architectures left to transformers' own reader: read, or refused where it would drop something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map
from transformers import AutoModelForCausalLM, Starcoder2Config

from pangu_modules.llm.models.loading import load_causal_lm

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "sliding_window": None}


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Starcoder2Config(**SIZES, **HEADS, initializer_range=0.3))
    return model.eval()


def write(model: Any, file: Path, keys: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None) -> Path:
    writer = GGUFWriter(file, "starcoder2")
    config = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_eps(config.norm_epsilon)
    writer.add_token_list([f"t{number}" for number in range(config.vocab_size)])
    for name, value in (keys or {}).items():
        writer.add_string(name, value)
    names = get_tensor_name_map(MODEL_ARCH.STARCODER2, config.num_hidden_layers)
    found = {
        str(names.get_name(name, try_suffixes=(".weight", ".bias"))): tensor.numpy()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    for name, tensor in {**found, **(tensors or {})}.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_another_architecture_is_read_as_a_plain_model(model: Any, tmp_path: Path) -> None:
    again = load_causal_lm(str(write(model, tmp_path / "model.gguf"))).eval()
    tokens = torch.arange(12)[None]
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert not hasattr(again.config, "quantization_config")
    again.save_pretrained(tmp_path / "folder")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": {"starcoder2.rope.scaling.type": "yarn"}}, "rope.scaling.type='yarn', which the model would ignore"),
        ({"tensors": {"rope_freqs.weight": np.ones(4, np.float32)}}, "rope_freqs.weight, which the model would ignore"),
        ({"tensors": {"blk.0.attn_sub_norm.weight": np.ones(32, np.float32)}}, r"it holds \d+ numbers, the model has"),
    ],
)
def test_what_transformers_would_drop_is_an_error(
    model: Any, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load_causal_lm(str(write(model, tmp_path / "model.gguf", **changes)))
