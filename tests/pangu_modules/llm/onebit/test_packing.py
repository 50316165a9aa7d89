"""Packed models: exact in memory and in a folder, small, and usable by generate in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from binary_llm import binary_module, block_linears, make_binary
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_llm import TINY_LLAMA, tiny_module, token_batch, word_tokenizer
from torch import nn

import pangu_modules
from pangu_modules.llm.models.loading import load_causal_lm
from pangu_modules.llm.models.tokenizer_loading import load_tokenizer
from pangu_modules.llm.onebit.packed_linear import PackedBinaryLinear
from pangu_modules.llm.onebit.packing import (
    WEIGHTS_FILE,
    final_linears,
    load_packed,
    pack_model,
    packed_layers,
    save_packed,
    unpack_model,
)

LOAD = """
import json, sys, torch
from pangu_modules.llm.onebit.packing import load_packed
model = load_packed(sys.argv[1])
tokens = model.generate(torch.tensor([[1, 5, 9, 7]]), max_new_tokens=16, do_sample=False, pad_token_id=0)
print(json.dumps(tokens[0].tolist()))
"""


@pytest.fixture
def module():
    return binary_module()


def packed_copy(module):
    return pack_model(module.model, final_linears(module))


def logits(model, tokens: int = 5):
    with torch.no_grad():
        return model(token_batch(1, tokens)["input_ids"]).logits


def greedy(model):
    ids = torch.tensor([[1, 5, 9, 7]])
    return model.generate(ids, max_new_tokens=16, do_sample=False, pad_token_id=0)


def test_packing_keeps_the_model_and_shares_what_is_dense(module):
    before = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    packed = packed_copy(module)
    assert sorted(packed_layers(packed)) == sorted(block_linears(module.model))
    assert len(packed_layers(packed)) == 14
    after = module.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert packed.model.embed_tokens.weight is module.model.model.embed_tokens.weight
    assert packed.lm_head.weight is packed.model.embed_tokens.weight


@pytest.mark.parametrize("tokens", [1, 8, 20])
def test_logits_are_those_of_the_binary_model(module, tokens):
    difference = (logits(packed_copy(module), tokens) - logits(module.model, tokens)).abs().max()
    assert difference < 1e-5  # logits of size 5; seen 2e-6, from another order of summation


def test_unpacking_is_exact(module):
    plain = unpack_model(packed_copy(module))
    expected = module.model.state_dict()
    found = plain.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(logits(plain), logits(module.model))


def test_a_folder_loads_back_exactly(module, tmp_path):
    packed = packed_copy(module)
    packed.generation_config.eos_token_id = 3
    save_packed(packed, tmp_path / "model", {"note.txt": "text"})
    loaded = load_packed(tmp_path / "model")
    expected, found = packed.state_dict(), loaded.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert found["model.layers.0.mlp.up_proj.scale"].dtype == torch.float32
    assert torch.equal(logits(loaded), logits(packed))
    assert loaded.generation_config.eos_token_id == 3
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert not loaded.training
    assert (tmp_path / "model" / "note.txt").read_text() == "text"


def test_untied_embeddings_and_biases_come_back(tmp_path):
    module = binary_module(model_args={"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True})
    with torch.no_grad():
        module.model.model.layers[0].mlp.up_proj.bias.normal_()
    packed = packed_copy(module)
    save_packed(packed, tmp_path / "model")
    loaded = load_packed(tmp_path / "model")
    assert torch.equal(logits(loaded), logits(packed))
    assert (logits(loaded) - logits(module.model)).abs().max() < 1e-5  # as above
    assert loaded.model.layers[0].mlp.up_proj.bias.any()
    assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight


def test_a_new_process_generates_the_same_from_an_export(tmp_path):
    tokenizer = word_tokenizer(tmp_path / "words")
    module = binary_module(data_tokenizer=tokenizer)
    module.export(tmp_path / "model", "packed")
    variables = {**os.environ, "PYTHONPATH": str(Path(pangu_modules.__file__).parents[1])}
    command = [sys.executable, "-c", LOAD, str(tmp_path / "model")]
    output = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, env=variables).stdout
    assert json.loads(output.splitlines()[-1]) == greedy(module.model)[0].tolist()
    assert load_tokenizer(str(tmp_path / "model"))("w3 w4")["input_ids"] == [8, 9]


def test_bytes_per_weight_and_file_size_are_printed_and_small(tmp_path, capsys):
    module = binary_module(model_args={"hidden_size": 288, "intermediate_size": 576, "num_hidden_layers": 1})
    module.export(tmp_path / "model", "packed")
    size = save_packed(packed_copy(module), tmp_path / "again")
    file = tmp_path / "again" / WEIGHTS_FILE
    assert size.file_bytes == file.stat().st_size
    weights = [layer.weight for layer in block_linears(module.model).values()]
    assert size.weights == sum(weight.numel() for weight in weights)
    assert size.weight_bytes == sum(weight.numel() // 8 + 4 * len(weight) for weight in weights)
    assert size.bytes_per_weight <= 0.14
    stored = load_file(file)
    binary = [tensor for name, tensor in stored.items() if name.endswith((".packed", ".scale"))]
    assert sum(tensor.nbytes for tensor in binary) == size.weight_bytes
    assert f"({size.bytes_per_weight:.4f} bytes each)" in capsys.readouterr().out


def test_scales_are_stored_in_float16_only_where_that_is_exact(tmp_path):
    half = binary_module(torch.float16)
    linear = half.model.model.layers[1].mlp.down_proj
    with torch.no_grad():
        linear.weight[0] = 0.1 * linear.weight[0].sign()
    size = save_packed(packed_copy(half), tmp_path / "model")
    stored = load_file(tmp_path / "model" / WEIGHTS_FILE)
    types = {name: tensor.dtype for name, tensor in stored.items() if name.endswith(".scale")}
    single = [name for name, kind in types.items() if kind == torch.float32]
    assert single == ["model.layers.1.mlp.down_proj.scale"]
    assert set(types.values()) == {torch.float16, torch.float32}
    assert torch.equal(logits(load_packed(tmp_path / "model")), logits(packed_copy(half)))
    rows = sum(layer.out_features for layer in packed_layers(packed_copy(half)).values())
    assert size.weight_bytes == size.weights // 8 + 2 * rows + 2 * 32


def test_metadata_say_version_and_widths(module, tmp_path):
    save_packed(packed_copy(module), tmp_path / "model")
    with safe_open(tmp_path / "model" / WEIGHTS_FILE, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["version"]) == ("pangu-packed-binary", "1")
    records = json.loads(metadata["layers"])
    assert records["model.layers.0.mlp.down_proj"]["in_features"] == TINY_LLAMA["intermediate_size"]


def test_transformers_alone_does_not_load_random_weights(module, tmp_path):
    save_packed(packed_copy(module), tmp_path / "model")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_causal_lm(str(tmp_path / "model"))


def test_what_is_not_binary_yet_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no binarized layers: train it with the ProgressiveBinarization"):
        tiny_module().export(tmp_path / "model", "packed")
    with pytest.raises(ValueError, match=r"finalize_module\(module\) first"):
        binary_module(final=False).export(tmp_path / "model", "packed")
    dense = tiny_module()
    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn\.q_proj is not binary: row 0 holds 32 values"):
        pack_model(dense.model, block_linears(dense.model))
    latent = binary_module(final=False)
    with pytest.raises(ValueError, match=r"q_proj is a ProgressiveBinaryLinear, not a plain"):
        pack_model(latent.model, block_linears(latent.model))
    with pytest.raises(ValueError, match="no packed layers: pack it first"):
        save_packed(dense.model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_shapes_that_the_configuration_does_not_describe_are_refused(module, tmp_path):
    layer = module.model.model.layers[0]
    layer.mlp.down_proj = nn.Linear(TINY_LLAMA["intermediate_size"], TINY_LLAMA["hidden_size"] + 1, bias=False)
    make_binary(layer.mlp.down_proj)
    layer.input_layernorm.weight = nn.Parameter(torch.ones(7))
    with pytest.raises(ValueError, match=r"1 tensors do not.*layers\.0\.input_layernorm\.weight \(\(7,\)\)"):
        save_packed(packed_copy(module), tmp_path / "model")


def test_folders_that_are_no_packed_model_are_refused(module, tmp_path):
    with pytest.raises(ValueError, match=r"no packed\.safetensors in .*nowhere: give a folder"):
        load_packed(tmp_path / "nowhere")
    folder = tmp_path / "model"
    save_packed(packed_copy(module), folder)
    tensors = load_file(folder / WEIGHTS_FILE)
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        metadata = file.metadata()
    del tensors["model.layers.1.mlp.up_proj.packed"]
    save_file(tensors, folder / WEIGHTS_FILE, metadata=metadata)
    with pytest.raises(ValueError, match=r"is incomplete, it lacks model\.layers\.1\.mlp\.up_proj\.packed \(1 tensors"):
        load_packed(folder)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={**metadata, "version": "2"})
    with pytest.raises(ValueError, match=r"pangu-packed-binary version 2; this library reads .* up to version 1"):
        load_packed(folder)
    save_file(tensors, folder / WEIGHTS_FILE)
    with pytest.raises(ValueError, match="None version None"):
        load_packed(folder)


def test_an_interrupted_write_leaves_nothing_and_a_finished_one_stays(module, tmp_path, monkeypatch):
    packed = packed_copy(module)
    save_packed(packed, tmp_path / "model")
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        save_packed(packed, tmp_path / "model")
    monkeypatch.setattr(type(packed.config), "save_pretrained", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_packed(packed, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_packed_model_has_no_weights_to_train(module):
    packed = packed_copy(module)
    assert {name.rpartition(".")[2] for name, _ in packed.named_parameters()} == {"weight"}
    assert not [name for name, _ in packed.named_parameters() if "_proj" in name]
    assert isinstance(packed.model.layers[0].mlp.up_proj, PackedBinaryLinear)
