"""Reading GGUF files: frequency factors, layers of different sizes, and errors for what a model would not take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from gguf_files import METHODS, decoder, logits, pruned, read, rewritten

from pangu_modules.llm.causal_lm import CausalLM
from pangu_modules.llm.export.gguf import write_gguf
from pangu_modules.llm.models.gguf.families import decode_q1_0
from pangu_modules.llm.models.loading import load_causal_lm, stored_dtype


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(decoder(tmp_path), tmp_path / "model.gguf")


def test_frequencies_are_divided_by_the_factors_of_a_file(file: Path) -> None:
    factors = np.array([1.0, 2.0, 8.0, 8.0], dtype=np.float32)  # not Llama 3's for any context
    changed = rewritten(file, tensors={"rope_freqs.weight": factors})
    module, plain = read(changed), read(file)
    expected = read(file)
    expected.model.model.rotary_emb.inv_freq /= torch.from_numpy(factors)
    assert torch.equal(logits(module), logits(expected))
    assert (logits(module) - logits(plain)).abs().max() > 0.1
    again = write_gguf(module, file.with_name("again.gguf"))
    assert torch.equal(logits(read(again)), logits(module))


def test_factors_of_llama_3_are_recognised(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    module = decoder(tmp_path, rope_parameters=rope, head_dim=64, max_position_embeddings=131072)
    again = read(write_gguf(module, tmp_path / "model.gguf"))
    assert again.model.config.rope_parameters == rope


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensors": {"blk.0.attn_sub_norm.weight": np.ones(32, np.float32)}}, "does not take, blk.0.attn_sub_norm"),
        ({"tensors": {"rope_factors_long.weight": np.ones(4, np.float32)}}, "does not take, rope_factors_long"),
        ({"without": ("blk.1.ffn_up.weight",)}, "has no tensor blk.1.ffn_up.weight"),
        ({"tensors": {"output_norm.weight": np.ones(16, np.float32)}}, r"output_norm.weight has shape \(16,\)"),
        ({"keys": {"llama.attention.scale": 0.5}}, "it sets llama.attention.scale=0.5, which the model would ignore"),
        ({"keys": {"llama.expert_count": 8}}, "llama.expert_count=8"),
        ({"keys": {"llama.rope.scaling.type": "longrope"}}, "rope.scaling.type='longrope'"),
        ({"without": ("llama.attention.head_count",)}, "it has no llama.attention.head_count"),
        ({"keys": {"split.count": 3}}, "one of 3 parts"),
        ({"keys": {"general.type": "mmproj"}}, "general.type='mmproj'"),
        ({"architecture": "nonsense"}, "architecture 'nonsense' cannot be read"),
    ],
)
def test_what_the_model_does_not_take_is_an_error(file: Path, changes: dict[str, Any], message: str) -> None:
    changed = rewritten(file, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_causal_lm(str(changed))
    assert "changed.gguf" in str(caught.value)
    with pytest.raises(ValueError, match=message):
        load_causal_lm(str(changed), from_config_only=True)


def test_an_unknown_tokenizer_is_an_error_and_none_is_none(file: Path) -> None:
    with pytest.raises(ValueError, match="cuts text as 'viking' does"):
        read(rewritten(file, without=("tokenizer.ggml.pre",), keys={"tokenizer.ggml.pre": "viking"}))
    assert read(rewritten(file, without=("tokenizer.ggml.model",))).tokenizer is None


def test_keys_that_say_nothing_are_let_pass(file: Path) -> None:
    changed = rewritten(file, keys={"llama.expert_count": 0, "llama.rope.scaling.type": "none"})
    assert torch.equal(logits(read(changed)), logits(read(file)))


@pytest.mark.parametrize("kept", [0, 3, 40, 5000, 60000])
def test_a_damaged_file_is_named_in_one_sentence(file: Path, kept: int) -> None:
    content = file.read_bytes()
    assert len(content) > 60000
    file.write_bytes(content[:kept])
    with pytest.raises(ValueError, match=r"model\.gguf.*(no GGUF file|cut off)"):
        load_causal_lm(str(file))


def test_reading_draws_no_random_numbers(file: Path) -> None:
    torch.manual_seed(3)
    load_causal_lm(str(file))
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


# Pruned models.


BIASED = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("llama", {}),
        ("llama", BIASED),
        ("llama", {"head_dim": 16}),
        ("qwen2", {}),
        ("mistral", {"sliding_window": None}),
    ],
)
def test_a_pruned_model_is_read_back_as_it_is(
    method: str, architecture: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    module = pruned(tmp_path, method, architecture, **fields)
    file = write_gguf(module, tmp_path / "model.gguf")
    again = read(file)
    assert torch.equal(logits(again), logits(module))
    shapes = [{name: tuple(tensor.shape) for name, tensor in one.model.named_parameters()} for one in (again, module)]
    assert set(shapes[1].items()) <= set(shapes[0].items())
    assert all(name.endswith("bias") for name in set(shapes[0]) - set(shapes[1]))  # Llama's switch is for all four
    with torch.device("meta"):
        planned = CausalLM.Config(model=str(file)).build()
    assert {name: tuple(tensor.shape) for name, tensor in planned.model.named_parameters()} == shapes[0]


def test_a_pruned_file_trains_through_a_checkpoint(tmp_path: Path) -> None:
    from tiny_text import TokenBatches

    file = write_gguf(pruned(tmp_path, "slimllm"), tmp_path / "model.gguf")
    module = read(file).train()
    assert [plan.kind for plan in module.config.structure] == ["shape"]
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=1, logger=False, default_root_dir=tmp_path, enable_progress_bar=False
    )
    trainer.fit(module, datamodule=TokenBatches.Config().build())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = CausalLM.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True, map_location="cpu")
    assert torch.equal(logits(again), logits(module))
    assert torch.equal(logits(read(write_gguf(again, tmp_path / "b.gguf"))), logits(module))


def test_qwen3_with_layers_of_different_sizes_is_refused(tmp_path: Path) -> None:
    module = pruned(tmp_path, "slimllm", "qwen3", head_dim=16)
    with pytest.raises(ValueError, match="qwen3 needs layers of one size, and this model's differ"):
        write_gguf(module, tmp_path / "model.gguf")


# Types.


def test_the_stored_type_is_the_matrices(file: Path, tmp_path: Path) -> None:
    assert stored_dtype(str(file)) == "float32"
    half = decoder(tmp_path)
    half.export(tmp_path / "h", "gguf_f16")
    assert stored_dtype(str(tmp_path / "h" / "model-f16.gguf")) == "float16"
    half.export(tmp_path / "q", "gguf_q8_0")
    assert stored_dtype(str(tmp_path / "q" / "model-q8_0.gguf")) == "float32"


def test_bits_are_read_low_bit_first() -> None:
    scale = torch.tensor([0.5], dtype=torch.float16).view(torch.uint8)
    bits = torch.tensor([0b00000101] + [0] * 15, dtype=torch.uint8)
    row = decode_q1_0(torch.cat([scale, bits])[None])
    assert row.shape == (1, 128)
    assert row[0, :4].tolist() == [0.5, -0.5, 0.5, -0.5]
    assert (row[0, 3:] == -0.5).all()
