import json
import os

import pytest
import torch
from safetensors import safe_open
from tiny_llm import TINY_LLAMA, byte_tokenizer, tiny_module, token_batch

from pangu_modules.llm.models.conversion import gguf_to_folder
from pangu_modules.llm.models.loading import load_causal_lm, load_config, new_causal_lm, new_config, plain_config
from pangu_modules.llm.models.tokenizer_loading import load_tokenizer


@pytest.fixture
def folder(tmp_path):
    module = tiny_module(data_tokenizer=byte_tokenizer(tmp_path / "tokenizer"), model_args={"vocab_size": 260})
    module.export(tmp_path / "model")
    return tmp_path / "model", module


def test_folder_loads_in_training_mode_with_tied_weights(folder):
    path, module = folder
    model = load_causal_lm(str(path), attn_implementation="eager")
    assert model.training
    assert model.config._attn_implementation == "eager"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for name, value in module.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_configuration_alone_gives_shapes_but_other_weights(folder):
    path, module = folder
    model = load_causal_lm(str(path), from_config_only=True)
    own, expected = model.state_dict(), module.model.state_dict()
    assert {name: value.shape for name, value in own.items()} == {n: v.shape for n, v in expected.items()}
    assert not torch.equal(own["lm_head.weight"], expected["lm_head.weight"])
    with torch.device("meta"):
        assert load_causal_lm(str(path), from_config_only=True).device.type == "meta"


def test_gguf_file_loads_as_a_plain_model_and_converts_once(folder, tmp_path):
    _, module = folder
    module.export(tmp_path / "gguf", "gguf")
    gguf_file = tmp_path / "gguf" / "model-f32.gguf"
    model = load_causal_lm(str(gguf_file))
    assert not hasattr(model.config, "quantization_config")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert load_config(str(gguf_file)).hidden_size == TINY_LLAMA["hidden_size"]
    converted = gguf_to_folder(gguf_file, tmp_path / "cache" / "plain")
    files = sorted(file.name for file in converted.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert "quantization_config" not in json.loads((converted / "config.json").read_text())
    with safe_open(converted / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
        assert {weights.get_tensor(name).dtype for name in names} == {torch.float32}
    before = (converted / "model.safetensors").stat().st_mtime_ns
    assert gguf_to_folder(gguf_file, converted) == converted
    assert (converted / "model.safetensors").stat().st_mtime_ns == before
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["plain"]
    batch = token_batch()
    with torch.no_grad():
        expected = module.model.eval()(**batch).logits
        got = load_causal_lm(str(converted)).eval()(**batch).logits
    assert torch.equal(got, expected)
    assert load_tokenizer(str(converted))("hello").input_ids == module.tokenizer("hello").input_ids


def test_a_model_from_scratch_and_back_to_plain_data():
    model = new_causal_lm("llama", {**TINY_LLAMA, "rope_theta": 5000.0}, dtype=torch.float64)
    assert model.dtype == torch.float64
    architecture, fields = plain_config(model.config)
    assert json.loads(json.dumps(fields)) == fields
    again = new_config(architecture, fields)
    assert again.rope_parameters["rope_theta"] == 5000.0
    assert plain_config(again) == (architecture, fields)


def test_architecture_of_this_library_is_registered_when_it_is_asked_for():
    assert type(new_causal_lm("sandwich_llama", TINY_LLAMA)).__name__ == "SandwichLlamaForCausalLM"


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("lama", {}, "unknown to transformers. Did you mean 'llama'"),
        ("llama", {"hiden_size": 3}, "has no field 'hiden_size'. Did you mean 'hidden_size'"),
        ("vit", {}, "no causal language model"),
    ],
)
def test_mistakes_in_a_model_from_scratch_are_named(architecture, fields, message):
    with pytest.raises(ValueError, match=message):
        new_causal_lm(architecture, fields)


def test_missing_models_are_named_with_the_place_searched(tmp_path):
    with pytest.raises(ValueError, match=f"nothing at {tmp_path}/absent"):
        load_causal_lm(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"model='other\.gguf': nothing at"):
        load_causal_lm("other.gguf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"model=.*empty.* cannot be loaded"):
        load_causal_lm(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"tokenizer=.*absent"):
        load_tokenizer(str(tmp_path / "absent"))


def test_weights_in_pickle_files_are_refused(folder, tmp_path):
    path, module = folder
    torch.save(module.model.state_dict(), path / "pytorch_model.bin")
    os.remove(path / "model.safetensors")
    with pytest.raises(ValueError, match="weights in safetensors"):
        load_causal_lm(str(path))
