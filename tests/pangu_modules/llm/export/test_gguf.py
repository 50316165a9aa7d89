"""GGUF files of every family: read back with the same logits, what they say, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf_files import GEMMA, decoder, logits, read

from pangu_modules.llm.export.gguf import gguf_tensors, matrices_as, write_gguf

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
}
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("llama", {}, "llama"),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, "llama"),
    "llama linear": ("llama", {"rope_parameters": LINEAR}, "llama"),
    "llama yarn": ("llama", {"rope_parameters": YARN}, "llama"),
    "llama yarn with another temperature": ("llama", {"rope_parameters": {**YARN, "attention_factor": 1.7}}, "llama"),
    "llama 3": ("llama", {"rope_parameters": LLAMA3}, "llama"),
    "mistral": ("mistral", {"head_dim": 16, "sliding_window": None}, "llama"),
    "seed_oss": ("seed_oss", {"head_dim": 8, "attention_bias": True, "attention_out_bias": False}, "llama"),
    "qwen2": ("qwen2", {}, "qwen2"),
    "qwen2 yarn": ("qwen2", {"rope_parameters": YARN}, "qwen2"),
    "qwen3": ("qwen3", {"head_dim": 16}, "qwen3"),
    "gemma": ("gemma", {"head_dim": 16}, "gemma"),
    "gemma2": ("gemma2", GEMMA, "gemma2"),
    "gemma3": ("gemma3_text", {**GEMMA, "rope_parameters": GEMMA3_ROPE}, "gemma3"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_read_back_with_its_logits(name: str, tmp_path: Path) -> None:
    architecture, fields, written = FAMILIES[name]
    module = decoder(tmp_path, architecture, **fields)
    module.export(tmp_path / "out", "gguf")
    file = tmp_path / "out" / "model-f32.gguf"
    assert GGUFReader(file).get_field("general.architecture").contents() == written
    kernel = {"attn_implementation": "eager"} if written == "gemma2" else {}
    again = read(file, **kernel)
    expected = logits(module)
    assert expected.std() > 0.3
    # Gemma stores gains less 1, and YaRN's temperature is stored as a quotient; all else is equal to the bit.
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=2e-4)
    text = "the river, 1234"
    assert again.tokenizer(text)["input_ids"] == module.tokenizer(text)["input_ids"]


def test_a_scaled_rope_changes_the_logits_that_are_compared(tmp_path: Path) -> None:
    plain = logits(decoder(tmp_path, "llama"))
    for rope in (LINEAR, YARN, LLAMA3):
        assert (logits(decoder(tmp_path, "llama", rope_parameters=rope)) - plain).abs().max() > 0.1


def test_what_the_keys_say_of_gemma_and_yarn(tmp_path: Path) -> None:
    file = write_gguf(decoder(tmp_path, "gemma2", **GEMMA), tmp_path / "g.gguf")
    reader = GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["gemma2.attn_logit_softcapping"] == 50.0
    assert fields["gemma2.final_logit_softcapping"] == 30.0
    assert fields["gemma2.attention.sliding_window"] == 6
    module = decoder(tmp_path, "gemma2", **GEMMA)
    gain = module.model.model.norm.weight.detach().numpy()
    stored = {tensor.name: tensor.data for tensor in reader.tensors}
    assert np.array_equal(stored["output_norm.weight"], gain + 1)
    file = write_gguf(
        decoder(tmp_path, "llama", rope_parameters={**YARN, "attention_factor": 2.0}), tmp_path / "y.gguf"
    )
    fields = {name: field.contents() for name, field in GGUFReader(file).fields.items()}
    assert fields["llama.rope.scaling.type"] == "yarn"
    assert fields["llama.rope.scaling.factor"] == 4.0
    assert fields["llama.rope.scaling.original_context_length"] == 16
    assert fields["llama.rope.scaling.attn_factor"] == pytest.approx(2.0 / (0.1 * np.log(4.0) + 1))


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("llama", {"rope_parameters": {**LINEAR, "rope_type": "dynamic"}}, "no keys for rope_type='dynamic'"),
        ("llama", {"rope_parameters": {**YARN, "beta_fast": 16.0}}, "beta_fast=32 built in, not 16"),
        ("llama", {"rope_parameters": {**YARN, "truncate": False}}, "truncate=False"),
        ("llama", {"hidden_act": "gelu"}, "llama computes silu, not 'gelu'"),
        ("qwen2", {"rope_parameters": LLAMA3}, "qwen2 takes no frequency factors, which rope_type='llama3'"),
        ("qwen3", {"attention_bias": True}, "no bias on k_proj, o_proj, q_proj, v_proj"),
        ("mistral", {"sliding_window": 8}, "no sliding window, this model has sliding_window=8"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "no sliding window"),
        ("gemma", {"hidden_act": "silu"}, "computes gelu_pytorch_tanh, not 'silu'"),
        ("gemma2", {**GEMMA, "query_pre_attn_scalar": 8}, "query_pre_attn_scalar=16 built in, not 8"),
        ("gemma2", {**GEMMA, "attn_logit_softcapping": None}, "gemma2 has both soft caps"),
        ("gemma3_text", {**GEMMA, "layer_types": ["full_attention"] * 7}, "layer_types=.* built in"),
        ("gemma3_text", {**GEMMA, "final_logit_softcapping": 30.0}, "gemma3 none"),
        ("olmo2", {}, "written for .*; this model is 'olmo2'"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    architecture: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    module = decoder(tmp_path, architecture, **fields)
    with pytest.raises(ValueError, match=message):
        write_gguf(module, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf"))


# Types of tensors.


@pytest.mark.parametrize(
    ("kind", "file", "number", "bits"), [("gguf_f16", "f16", 1, 16.0), ("gguf_q8_0", "q8_0", 7, 8.5)]
)
def test_half_and_eight_bits(kind: str, file: str, number: int, bits: float, tmp_path: Path) -> None:
    module = decoder(tmp_path, "llama")
    module.export(tmp_path / "out", kind)
    reader = GGUFReader(tmp_path / "out" / f"model-{file}.gguf")
    assert reader.get_field("general.file_type").contents() == number
    for tensor in reader.tensors:
        assert (tensor.tensor_type == GGMLQuantizationType.F32) == ("norm" in tensor.name)
        if "norm" not in tensor.name:
            assert tensor.n_bytes * 8 == tensor.n_elements * bits
    expected = logits(module)
    difference = (logits(read(tmp_path / "out" / f"model-{file}.gguf")) - expected).abs().max()
    assert 0 < difference < {"f16": 0.05, "q8_0": 1.0}[file] * expected.std()


def test_rows_that_q8_0_cannot_hold_are_halves_and_large_numbers_refused() -> None:
    encode = matrices_as("Q8_0").encode
    assert encode("a", np.ones((2, 48), np.float32))[1] == GGMLQuantizationType.F16
    assert encode("a", np.ones((2, 64), np.float32))[1] == GGMLQuantizationType.Q8_0
    assert encode("a", np.ones(64, np.float32))[1] is None
    with pytest.raises(ValueError, match="a holds 70000, beyond float16's range"):
        matrices_as("F16").encode("a", np.full((2, 64), 7e4, np.float32))


def test_the_type_follows_the_option_and_a_file_of_halves_is_written_as_halves(tmp_path: Path) -> None:
    module = decoder(tmp_path, "llama")
    module.export(tmp_path / "a", "gguf", dtype="bfloat16")
    file = tmp_path / "a" / "model-bf16.gguf"
    again = read(file)
    assert again.loaded_dtype == "bfloat16"
    assert next(again.model.parameters()).dtype == torch.float32
    again.export(tmp_path / "b", "gguf")
    stored = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "b" / "model-bf16.gguf").tensors}
    assert stored["blk.0.attn_q.weight"] == "BF16"
    assert stored["blk.0.attn_norm.weight"] == "F32"
    assert torch.equal(logits(read(tmp_path / "b" / "model-bf16.gguf")), logits(again))


def test_llama_3_factors_are_transformers_frequencies(tmp_path: Path) -> None:
    module = decoder(tmp_path, "llama", rope_parameters=LLAMA3, head_dim=32)
    factors = gguf_tensors(module.model)["rope_freqs.weight"]
    plain = 10000.0 ** -(torch.arange(0, 32, 2) / 32)
    torch.testing.assert_close(plain / torch.from_numpy(factors), module.model.model.rotary_emb.inv_freq)
    assert factors.min() > 1.0  # 16 positions are fewer than the fastest frequency needs for four turns
    assert factors.max() == 8.0
