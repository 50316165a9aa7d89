"""Every family of causal LMs that transformers builds: its configuration goes through checkpoints as plain data."""

import json
import warnings

import pytest
import torch
from tiny_families import LARGEST, NO_FORWARD, NOT_TINY, tiny_fields
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

from pangu_modules.llm.models.fields import fields_read
from pangu_modules.llm.models.loading import load_causal_lm, new_causal_lm, new_config, plain_config

FAMILIES = sorted({config.model_type for config in MODEL_FOR_CAUSAL_LM_MAPPING} - set(NOT_TINY))
COMMON = ("llama", "qwen2", "qwen3", "qwen3_moe", "olmo", "gemma2", "mistral", "mixtral", "gpt2", "opt", "phi3")
# The common ones always, of the others every twelfth; all of them take half a minute.
SAMPLE = sorted({*COMMON, *FAMILIES[::12]})


def tiny(model_type):
    known = set(AutoConfig.for_model(model_type).to_dict())
    config = AutoConfig.for_model(model_type, **tiny_fields(model_type, known, fields_read(model_type)))
    with torch.device("meta"):
        meta = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in meta.parameters()) < LARGEST, f"{model_type} is not tiny"
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def check_round_trip(model_type, folder):
    model = tiny(model_type)
    architecture, fields = plain_config(model.config)
    again = new_causal_lm(architecture, json.loads(json.dumps(fields))).eval()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == shapes
    again.load_state_dict(model.state_dict())
    model.save_pretrained(folder)
    loaded = load_causal_lm(str(folder)).eval()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    if model_type in NO_FORWARD:
        return
    # Measured: 1.5e-8, where a tensor lies elsewhere in memory; another head_dim or rope moves logits by 1e-3 and more.
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        wanted, *found = (each(input_ids=ids, use_cache=False).logits for each in (model, again, loaded))
    for logits in found:
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_family_is_rebuilt_from_plain_data_and_from_its_folder(model_type, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_round_trip(model_type, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in SAMPLE])
def test_every_other_family_is_rebuilt_too(model_type, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_round_trip(model_type, tmp_path)


def test_fields_that_the_code_reads_are_known_and_misspelt_ones_are_not():
    assert "head_dim" not in AutoConfig.for_model("qwen2").to_dict()
    assert new_config("qwen2", {"head_dim": 24}).head_dim == 24
    assert plain_config(AutoConfig.for_model("qwen2", head_dim=24, nobody_reads_this=1))[1]["head_dim"] == 24
    assert "nobody_reads_this" not in plain_config(AutoConfig.for_model("qwen2", nobody_reads_this=1))[1]
    with pytest.raises(ValueError, match=r"'qwen2' has no field 'hiden_size'.*hidden_size"):
        new_config("qwen2", {"hiden_size": 24})


def test_sizes_that_do_not_fit_are_refused_in_one_line():
    sizes = {"hidden_size": 30, "num_attention_heads": 4, "head_dim": 8}
    with pytest.raises(ValueError, match=r"model_args do not fit architecture='llama': .*30.*4") as error:
        new_config("llama", sizes)
    assert "\n" not in str(error.value)
