"""GGUF files of binarized models: the bits of Q1_0, exactness, refusals, and llama.cpp itself."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from binary_llm import binary_module, block_linears
from gguf import GGMLQuantizationType, GGUFReader
from tiny_llm import byte_tokenizer, tiny_module
from torch import nn

from pangu_modules.llm.causal_lm import CausalLM
from pangu_modules.llm.export.gguf import gguf_tensors
from pangu_modules.llm.onebit import gguf as binary_gguf
from pangu_modules.llm.onebit.config import OneBitConfig
from pangu_modules.llm.onebit.finalize import finalize_module
from pangu_modules.llm.onebit.gguf import decode_rows, encode_rows, ternary_scale, write_binary_gguf
from pangu_modules.llm.onebit.plan import BinarizePlan

WIDE = {"vocab_size": 264, "hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.05}
BITS = {"Q1_0": 1.125, "TQ1_0": 1.6875, "TQ2_0": 2.0625}
PROMPT = [2 + byte for byte in b"The answer is a matter of bits, one for each weight."]
NODE_SCRIPT = """
import {writeFileSync} from "node:fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";
const llama = await getLlama({build: "never", gpu: false, progressLogs: false, logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: process.argv[2]});
const context = await model.createContext({contextSize: 64});
const sequence = context.getSequence();
const tokens = JSON.parse(process.argv[3]);
const options = {generateNext: {probabilities: true, options: {temperature: 1, topK: 0, topP: 1, minP: 0}}};
const results = await sequence.controlledEvaluate(tokens.map((token) => [token, options]));
writeFileSync(process.argv[4], JSON.stringify(results.map((result) => [...result.next.probabilities])));
process.exit(0);
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    tokenizer = byte_tokenizer(tmp_path_factory.mktemp("bytes"))
    return binary_module(torch.float16, model_args=WIDE, data_tokenizer=tokenizer)


def binary_rows(rows: int, columns: int) -> np.ndarray:
    generator = np.random.default_rng(rows + columns)
    scale = generator.uniform(0.01, 0.1, (rows, 1)).astype(np.float16).astype(np.float32)
    return np.where(generator.random((rows, columns)) < 0.5, -scale, scale)


def test_q1_0_is_a_float16_and_128_bits_low_bit_first():
    rows = binary_rows(3, 384)
    stored = encode_rows(rows, "Q1_0")
    assert stored.shape == (3, 3 * 18)
    for row, blocks in zip(rows, stored, strict=True):
        for block in range(3):
            part = blocks[18 * block : 18 * (block + 1)].tobytes()
            (scale,) = struct.unpack("<e", part[:2])
            for position in range(128):
                bit = part[2 + position // 8] >> (position % 8) & 1
                assert row[128 * block + position] == (scale if bit else -scale)


@pytest.mark.parametrize("kind", BITS)
def test_rows_come_back_exactly(kind):
    rows = binary_rows(5, 512)
    stored = encode_rows(rows, kind)
    assert stored.nbytes * 8 == rows.size * BITS[kind]
    assert np.array_equal(decode_rows(stored, kind), rows)


@pytest.mark.parametrize("kind", BITS)
def test_an_export_holds_the_model_exactly(module, tmp_path, kind):
    module.export(tmp_path, f"gguf_{kind.lower()}")
    reader = GGUFReader(tmp_path / f"model-{kind.lower()}.gguf")
    expected = gguf_tensors(module.model)
    assert {tensor.name for tensor in reader.tensors} == set(expected)
    for tensor in reader.tensors:
        binary = tensor.name.startswith("blk.") and "norm" not in tensor.name
        assert tensor.tensor_type == (GGMLQuantizationType[kind] if binary else GGMLQuantizationType.F32)
        assert list(tensor.shape) == list(expected[tensor.name].shape)[::-1]
        values = decode_rows(tensor.data, kind) if binary else tensor.data
        assert np.array_equal(values, expected[tensor.name])
    assert reader.get_field("general.file_type").contents() == {"Q1_0": 40, "TQ1_0": 36, "TQ2_0": 37}[kind]


def test_plain_gguf_of_a_binary_model_is_in_float32(module, tmp_path):
    module.export(tmp_path, "gguf")
    reader = GGUFReader(tmp_path / "model-f32.gguf")
    assert {tensor.tensor_type for tensor in reader.tensors} == {GGMLQuantizationType.F32}
    assert reader.get_field("general.file_type").contents() == 0


def test_widths_that_do_not_fit_are_listed_with_the_alternatives(tmp_path):
    module = binary_module(torch.float16)
    with pytest.raises(
        ValueError, match=r"multiples of 128, which 14 of 14.*q_proj \(32\).*down_proj \(64\)"
    ) as caught:
        module.export(tmp_path, "gguf_q1_0")
    assert "Formats that hold this model: packed, gguf and transformers" in str(caught.value)
    layers = {"a": nn.Linear(384, 1), "b": nn.Linear(128, 1)}
    binary_gguf.check_widths(layers, "Q1_0")
    with pytest.raises(ValueError, match=r"TQ2_0 needs .* of 256, which 2 of 2 .*hold this model: gguf_q1_0, packed"):
        binary_gguf.check_widths(layers, "TQ2_0")
    assert list(tmp_path.iterdir()) == []


def test_scales_that_are_no_float16_numbers_are_refused(tmp_path):
    tokenizer = byte_tokenizer(tmp_path / "bytes")
    module = binary_module(model_args=WIDE, data_tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"row scales of model.*are no float16 numbers.*scale_dtype=float16"):
        module.export(tmp_path / "out", "gguf_q1_0")
    assert not (tmp_path / "out").exists()


def test_input_scales_and_dense_layers_are_refused(module, tmp_path):
    linears = block_linears(module.model)
    first = next(iter(linears))
    scaled = nn.Linear(256, 256, bias=False)
    scaled.register_buffer("in_scale", torch.ones(256))
    with pytest.raises(ValueError, match=r"q_proj scales its inputs.*input_scale=fold"):
        write_binary_gguf(module, tmp_path / "x.gguf", {**linears, first: scaled}, "Q1_0")
    with pytest.raises(ValueError, match=r"q_proj is not binary"):
        write_binary_gguf(module, tmp_path / "x.gguf", {**linears, first: nn.Linear(256, 256)}, "Q1_0")
    with pytest.raises(ValueError, match="no binarized layers"):
        tiny_module().export(tmp_path, "gguf_q1_0")


def test_a_file_that_is_not_the_model_is_noticed(module, tmp_path, monkeypatch):
    def flipped(rows, kind):
        stored = encode_rows(rows, kind)
        stored[0, 2] ^= 1
        return stored

    monkeypatch.setattr(binary_gguf, "encode_rows", flipped)
    with pytest.raises(RuntimeError, match=r"read back, is not the model: tensor blk\..* differs"):
        module.export(tmp_path, "gguf_q1_0")
    assert list(tmp_path.iterdir()) == []


# Ternary models.


@pytest.fixture(scope="module")
def ternary(tmp_path_factory):
    tokenizer = byte_tokenizer(tmp_path_factory.mktemp("bytes"))
    torch.manual_seed(0)
    module = tiny_module(model_args=WIDE, data_tokenizer=tokenizer)
    plan = BinarizePlan(onebit=OneBitConfig(method="bitnet_b158", init="none", scale_dtype="float16"))
    module.restructure(plan)
    finalize_module(module)
    return module.eval()


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_a_ternary_model_is_held_exactly(ternary, tmp_path, kind):
    weight = ternary.model.model.layers[0].mlp.up_proj.weight
    assert weight.unique().numel() == 3
    ternary.export(tmp_path, f"gguf_{kind.lower()}")
    file = tmp_path / f"model-{kind.lower()}.gguf"
    (stored,) = (tensor for tensor in GGUFReader(file).tensors if tensor.name == "blk.0.ffn_up.weight")
    assert stored.tensor_type == GGMLQuantizationType[kind]
    assert stored.n_bytes * 8 == stored.n_elements * BITS[kind]
    assert np.array_equal(decode_rows(stored.data, kind), weight.detach().numpy())
    again = CausalLM.Config(model=str(file)).build().eval()
    tokens = torch.tensor([PROMPT])
    assert torch.equal(again.model(tokens).logits, ternary.model(tokens).logits)


def test_a_binary_file_is_read_back_too(module, tmp_path):
    module.export(tmp_path, "gguf_q1_0")
    again = CausalLM.Config(model=str(tmp_path / "model-q1_0.gguf")).build().eval()
    tokens = torch.tensor([PROMPT])
    assert torch.equal(again.model(tokens).logits, module.model.eval()(tokens).logits)


def test_what_holds_two_values_refuses_three_and_says_what_holds_them(ternary, tmp_path):
    for kind in ("gguf_q1_0", "packed"):
        with pytest.raises(ValueError, match=r"rows hold three values, not two; formats .*gguf_tq1_0, gguf_tq2_0"):
            ternary.export(tmp_path / "out", kind)
    linears = {"a": nn.Linear(256, 4)}
    with pytest.raises(ValueError, match="a is not binary or ternary: row 0 holds 256 values"):
        ternary_scale(linears["a"], "a")
    assert (
        ternary_scale(linears["a"].requires_grad_(False).apply(lambda layer: layer.weight.sign_()), "a").tolist()
        == [1.0] * 4
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", BITS)
def test_llama_cpp_computes_the_same_probabilities(module, tmp_path, monkeypatch, kind):
    """With node-llama-cpp, in the folder that PANGU_NODE_LLAMA_CPP names (the one that holds node_modules)."""
    if "PANGU_NODE_LLAMA_CPP" not in os.environ or shutil.which("node") is None:
        pytest.skip("needs node, and PANGU_NODE_LLAMA_CPP: the folder in which `npm install node-llama-cpp` was run")
    with torch.no_grad():
        expected = module.model(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    module.export(tmp_path / "right", f"gguf_{kind.lower()}")
    right = correlation(llama_cpp(tmp_path / "right"), expected)
    print(f"{kind}: log probabilities correlate {right:.4f}")
    assert right > 0.999  # seen 0.9998: llama.cpp rounds activations to 8 bits
    monkeypatch.setattr(binary_gguf, "encode_rows", high_bit_first)
    monkeypatch.setattr(binary_gguf, "_difference", lambda *_: "")
    module.export(tmp_path / "wrong", f"gguf_{kind.lower()}")
    assert correlation(llama_cpp(tmp_path / "wrong"), expected) < 0.5  # seen 0.15


def high_bit_first(rows: np.ndarray, kind: str) -> np.ndarray:
    return encode_rows(rows.reshape(len(rows), -1, 8)[:, :, ::-1].reshape(rows.shape), kind)


def llama_cpp(folder: Path) -> torch.Tensor:
    """Return the log probabilities after each token of the prompt, (tokens, vocabulary), -inf where cut off."""
    (file,) = folder.glob("*.gguf")
    (folder / "script.mjs").write_text(NODE_SCRIPT)
    (folder / "node_modules").symlink_to(Path(os.environ["PANGU_NODE_LLAMA_CPP"]) / "node_modules")
    command = ["node", folder / "script.mjs", file, json.dumps(PROMPT), folder / "found.json"]
    subprocess.run(command, check=True, timeout=300)
    found = torch.zeros(len(PROMPT), WIDE["vocab_size"])
    for position, probabilities in enumerate(json.loads((folder / "found.json").read_text())):
        for token, probability in probabilities:
            found[position, token] = probability
    return found.log()


def correlation(found: torch.Tensor, expected: torch.Tensor) -> float:
    kept = found.isfinite()
    assert kept.float().mean() > 0.9
    return float(torch.corrcoef(torch.stack([found[kept], expected[kept]]))[0, 1])
