"""Weights whose names do not fit are renamed or refused, never random: every model kind and every kind of misfit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llm import token_batch
from transformers import AutoConfig, AutoModelForCausalLM

import pangu_modules.llm.moge.modeling  # noqa: F401 (registers PanguProMoE)
from pangu_modules import CausalLM, load_causal_lm
from pangu_modules.llm.models.weights import missing_experts, tensor_names

SIZES = {"vocab_size": 128, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
MOE = {**SIZES, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "num_key_value_heads": 1}
KINDS = {
    "llama": {**SIZES, "intermediate_size": 24},
    "qwen3_moe": {**MOE, "intermediate_size": 24, "head_dim": 8},
    "PanguProMoE": {**MOE, "num_groups": 2, "shared_expert_intermediate_size": 8, "eos_token_id": 0},
}


def saved(folder, kind, change, **shards):
    """Save a tiny model whose state dict went through `change`; return its logits."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **KINDS[kind])).eval()
    model.save_pretrained(folder, **shards)
    for file in folder.glob("*.safetensors"):
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return logits_of(model)


@torch.no_grad()
def logits_of(model):
    return model.eval()(**token_batch()).logits


def prefixed(prefix):
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def without(part):
    return lambda state: {name: tensor for name, tensor in state.items() if part not in name}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "base_model.model.", "model."])
def test_prefixes_of_wrappers_come_off_and_do_not_come_back_in_an_export(tmp_path, kind, prefix):
    wanted = saved(tmp_path / "model", kind, prefixed(prefix))
    module = CausalLM.Config(model=str(tmp_path / "model")).build()
    assert torch.equal(logits_of(module.model), wanted)
    module.model.save_pretrained(tmp_path / "again")
    assert not any(name.startswith(prefix + "model.") for name in tensor_names(str(tmp_path / "again")))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(again), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_names_without_the_decoders_own_prefix_and_with_one_inside_fit_too(tmp_path, kind):
    wanted = saved(tmp_path / "a", kind, lambda state: {n.removeprefix("model."): t for n, t in state.items()})
    assert torch.equal(logits_of(load_causal_lm(str(tmp_path / "a"))), wanted)
    inside = {"layers.0.": "layers.0._orig_mod."}
    for before, after in inside.items():
        saved(tmp_path / "b", kind, lambda s, a=before, b=after: {n.replace(a, b): t for n, t in s.items()})
    assert torch.equal(logits_of(load_causal_lm(str(tmp_path / "b"))), wanted)


MISFITS = {
    "a head": (without("lm_head"), r"missing: lm_head\.weight \(1\)"),
    "a layer": (without("layers.1."), r"layers\.1\."),
    "foreign names": (prefixed("foo."), r"foo\.|router_scale"),
    "a head of another task": (lambda s: {**s, "score.weight": torch.zeros(2, 16)}, r"no part of the model: score"),
    "a short embedding": (
        lambda s: {n: t[:100].clone() if "embed" in n else t for n, t in s.items()},
        r"of another shape: model\.embed_tokens\.weight \(100, 16\) instead of \(128, 16\)",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_is_refused_by_name(tmp_path, kind, misfit):
    change, message = MISFITS[misfit]
    saved(tmp_path, kind, change)
    with pytest.raises(ValueError, match=message) as error:
        load_causal_lm(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["qwen3_moe", "PanguProMoE"])
@pytest.mark.parametrize(
    "part", ["layers.1.mlp.experts.2.", "layers.1.mlp.experts.3.", "layers.1.mlp.experts.2.up_proj"]
)
def test_a_missing_expert_is_named(tmp_path, kind, part):
    saved(tmp_path, kind, without(part))
    with pytest.raises(ValueError, match=rf"experts missing: model\.{part.replace('.', '[.]')}"):
        load_causal_lm(str(tmp_path))


def test_a_sharded_folder_is_read_by_its_index(tmp_path):
    wanted = saved(tmp_path, "qwen3_moe", prefixed("_orig_mod."), max_shard_size="10KB")
    index = tmp_path / "model.safetensors.index.json"
    described = json.loads(index.read_text())
    described["weight_map"] = {f"_orig_mod.{name}": file for name, file in described["weight_map"].items()}
    index.write_text(json.dumps(described))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(logits_of(load_causal_lm(str(tmp_path))), wanted)
    del described["weight_map"]["_orig_mod.model.layers.0.mlp.experts.1.down_proj.weight"]
    assert missing_experts(described["weight_map"]) == ["_orig_mod.model.layers.0.mlp.experts.1.down_proj.weight"]


def test_a_kernel_that_the_model_lacks_is_replaced_and_said(tmp_path):
    fields = {**KINDS["llama"], "head_dim": 8, "num_key_value_heads": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma2", **fields)).eval()
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="attn_implementation='eager' is used"):
        loaded = load_causal_lm(str(tmp_path))
    assert torch.equal(logits_of(loaded), logits_of(model))


def test_a_start_from_a_compiled_models_checkpoint_takes_its_weights(tmp_path):
    source = CausalLM.Config(architecture="llama", model_args=KINDS["llama"]).build()
    state = {name.replace("model.", "model._orig_mod.", 1): tensor for name, tensor in source.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": dict(source.hparams)}, tmp_path / "c.ckpt")
    fields = {"architecture": "llama", "model_args": KINDS["llama"], "init_checkpoint": str(tmp_path / "c.ckpt")}
    assert torch.equal(logits_of(CausalLM.Config(**fields).build().model), logits_of(source.model))
