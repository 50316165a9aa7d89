import subprocess
import sys
from typing import Literal

import pytest
import torch
from gguf import GGUFReader
from tiny_llm import TINY_LLAMA, byte_tokenizer, tiny_module, token_batch, word_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from pangu_modules.llm.causal_lm import CausalLM
from pangu_modules.llm.export.gguf import interleave_halves, pre_tokenizer_name, write_gguf
from pangu_modules.llm.export.transformers import export, shape_differences
from pangu_modules.llm.lora import LoRAConfig
from pangu_modules.training.structure import Plan


@pytest.fixture
def module(tmp_path):
    torch.manual_seed(0)
    module = tiny_module(
        data_tokenizer=byte_tokenizer(tmp_path / "tokenizer"),
        model_args={"vocab_size": 270, "head_dim": 16, "rope_theta": 5000.0},
        lora=LoRAConfig(rank=2),
    )
    for name, parameter in module.model.named_parameters():
        if "lora_B" in name or "norm" in name:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    module.model.generation_config.eos_token_id = [1, 9]
    return module.eval()


def test_folder_loads_where_this_library_cannot_be_imported(module, tmp_path):
    module.export(tmp_path / "model", "transformers")
    module.merge_lora()
    batch = token_batch()
    torch.save({"logits": module.compute_outputs(batch)["logits"].detach(), **batch}, tmp_path / "expected.pt")
    program = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pangu_modules", "callbacks", "datamodules", "recipes"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
expected = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=True)
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "model")!r})
with torch.no_grad():
    print(float((model(expected["input_ids"]).logits - expected["logits"]).abs().max()))
print(model.lm_head.weight is model.model.embed_tokens.weight, model.generation_config.eos_token_id)
tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / "model")!r})
print(tokenizer("he")["input_ids"], tokenizer.chat_template[:6])
"""
    result = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    difference, model_line, tokenizer_line = result.stdout.strip().splitlines()
    assert float(difference) == 0
    assert model_line == "True [1, 9]"
    assert tokenizer_line == "[258] {% for"


def test_export_leaves_the_module_as_it_is_and_overwrites_nothing(module, tmp_path):
    before = {name: value.clone() for name, value in module.state_dict().items()}
    export(module, tmp_path / "model")
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        export(module, tmp_path / "model")
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "tokenizer"]
    rights = {file.stat().st_mode for file in (tmp_path / "model").iterdir()}
    assert rights == {(tmp_path / "tokenizer" / "tokenizer.json").stat().st_mode}
    with pytest.raises(ValueError, match=r"unknown export format 'onnx'.* Known: transformers, gguf"):
        module.export(tmp_path / "other", "onnx")


class Narrow(Plan):
    """Takes the first layer's last feed-forward channels away."""

    kind: Literal["test_narrow"] = "test_narrow"

    def apply(self, module):
        mlp = module.model.model.layers[0].mlp
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight = torch.nn.Parameter(linear.weight[:50].detach().clone())
        mlp.down_proj.weight = torch.nn.Parameter(mlp.down_proj.weight[:, :50].detach().clone())


class NarrowThatCanBeWritten(Narrow):
    kind: Literal["test_narrow_written"] = "test_narrow_written"

    def write_model(self, model, folder):
        (folder / "config.json").write_text(f"{model.model.layers[0].mlp.down_proj.weight.shape[1]}")


def test_layers_of_different_sizes_need_a_plan_that_writes_them(tmp_path):
    module = tiny_module(data_tokenizer=word_tokenizer(tmp_path / "tokenizer"))
    assert shape_differences(module.model) == []
    module.restructure(Narrow())
    with pytest.raises(
        ValueError, match=r"3 tensors .*gate_proj.weight: \(50, 32\) instead of \(64, 32\).*need a plan"
    ):
        export(module, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    other = tiny_module(data_tokenizer=tmp_path / "tokenizer")
    other.restructure(NarrowThatCanBeWritten())
    export(other, tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == "50"
    assert (tmp_path / "model" / "tokenizer.json").is_file()


def test_architecture_of_this_library_is_not_exported_as_if_others_knew_it(tmp_path):
    module = CausalLM.Config(architecture="sandwich_llama", model_args=TINY_LLAMA).build()
    with pytest.raises(ValueError, match="does not know the architecture 'sandwich_llama'"):
        module.export(tmp_path / "model")


# GGUF.


def test_gguf_read_back_gives_the_same_logits_and_tokens(module, tmp_path):
    module.export(tmp_path / "gguf", "gguf")
    module.merge_lora()
    assert [entry.name for entry in (tmp_path / "gguf").iterdir()] == ["model-f32.gguf"]
    source = {"pretrained_model_name_or_path": str(tmp_path / "gguf"), "gguf_file": "model-f32.gguf"}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(**source)
    batch = token_batch()
    assert torch.equal(model(**batch).logits, module.compute_outputs(batch)["logits"])
    text = "the hé </s> x"
    assert tokenizer(text)["input_ids"] == module.tokenizer(text)["input_ids"]
    assert tokenizer.chat_template == module.tokenizer.chat_template
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


def test_gguf_fields_and_rows_are_those_of_llama(module, tmp_path):
    module.merge_lora()
    path = write_gguf(module, tmp_path / "model.gguf")
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    expected = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 5000.0,
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {name: fields[name] for name in expected} == expected
    assert fields["tokenizer.ggml.merges"] == ["h e"]
    assert fields["tokenizer.ggml.tokens"][258:261] == ["he", "[PAD259]", "[PAD260]"]
    assert fields["tokenizer.ggml.token_type"][0:3] == [3, 3, 1]
    assert fields["tokenizer.ggml.token_type"][259] == 5
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert "output.weight" not in tensors
    keys = module.model.model.layers[1].self_attn.k_proj.weight
    for head in range(2):
        for component in range(8):  # of the half; GGUF has each pair that is rotated together side by side
            for half in range(2):
                row = tensors["blk.1.attn_k.weight"][16 * head + 2 * component + half]
                assert torch.equal(torch.from_numpy(row.copy()), keys[16 * head + 8 * half + component])
    value = module.model.model.layers[0].self_attn.v_proj.weight
    assert torch.equal(torch.from_numpy(tensors["blk.0.attn_v.weight"].copy()), value)


def test_interleaving_the_rows_of_two_heads():
    rows = torch.arange(8)
    assert interleave_halves(rows, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert interleave_halves(rows, 1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_names_of_pre_tokenizers():
    byte_level = {"type": "ByteLevel"}
    assert pre_tokenizer_name({"pre_tokenizer": byte_level}) == "gpt-2"
    digits = {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, byte_level]}
    assert pre_tokenizer_name({"pre_tokenizer": digits}) == "smollm"
    with pytest.raises(ValueError, match=r"\('Whitespace',\).*must be given as pre_tokenizer"):
        pre_tokenizer_name({"pre_tokenizer": {"type": "Whitespace"}})


def test_what_gguf_cannot_hold_is_refused(tmp_path):
    words = tiny_module(data_tokenizer=word_tokenizer(tmp_path / "tokenizer"))
    with pytest.raises(ValueError, match="byte-level BPE tokenizer, this one has model WordLevel"):
        write_gguf(words, tmp_path / "model.gguf")
    with pytest.raises(ValueError, match="this one has model none"):
        write_gguf(tiny_module(), tmp_path / "model.gguf")
    olmo = CausalLM.Config(architecture="olmo", model_args=TINY_LLAMA).build()
    with pytest.raises(ValueError, match="this model is 'olmo'"):
        write_gguf(olmo, tmp_path / "model.gguf")
    scaled = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}, "vocab_size": 270}
    scaled_module = tiny_module(data_tokenizer=byte_tokenizer(tmp_path / "bytes"), model_args=scaled)
    with pytest.raises(ValueError, match="rope_type='dynamic'"):
        write_gguf(scaled_module, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*model*"))
