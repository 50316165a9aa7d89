"""Exported folders against the pruned model, opened by a process that cannot import this library."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from pangu_modules.llm.models import decoder
from pangu_modules.llm.pruning import surgery
from pangu_modules.llm.pruning.export.folder import write_pruned
from pangu_modules.llm.pruning.export.padding import pad_layer
from pangu_modules.llm.pruning.plan import ShapePlan

TOKENS = [[5, 9, 33, 2, 17, 40, 8], [7, 7, 1, 3, 60, 22, 11]]

# Opens every folder, with our packages made unimportable, and saves logits and a greedy continuation through the cache.
READER = """
import sys
for name in ("pangu_modules", "callbacks", "datamodules", "recipes"):
    sys.modules[name] = None
import torch
from transformers import AutoModelForCausalLM
tokens = torch.tensor({tokens})
results = {{}}
for folder, remote in {folders}:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=remote).eval()
    with torch.no_grad():
        logits = model(tokens).logits
    text = model.generate(tokens, max_new_tokens=6, do_sample=False, pad_token_id=0)
    results[folder] = {{"logits": logits, "text": text, "type": model.config.model_type}}
torch.save(results, {output!r})
"""


def read_elsewhere(tmp_path, folders):
    output = tmp_path / "results.pt"
    pairs = [(str(folder), remote) for folder, remote in folders]
    code = READER.format(tokens=TOKENS, folders=pairs, output=str(output))
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path, capture_output=True)
    return torch.load(output, weights_only=True)


def uniform(model):
    """One group of three and half of the channels go, everywhere."""
    for layer in model.model.layers:
        surgery.keep_kv_groups(layer, [0, 2])
        surgery.keep_channels(layer, range(0, 28, 2))


def uneven(model):
    """Every layer gets sizes of its own; groups have one or two queries."""
    layers = model.model.layers
    surgery.keep_kv_groups(layers[0], [1])
    surgery.keep_query_heads(layers[1], [0, 3, 5])
    surgery.keep_channels(layers[2], [3, 9, 20])
    surgery.keep_kv_groups(layers[3], [0, 2])
    surgery.keep_channels(layers[3], range(11))


def with_biases(model, attention=True, mlp=True):
    generator = torch.Generator().manual_seed(4)
    for layer in model.model.layers:
        surgery.add_output_biases(layer, attention=attention, mlp=mlp)
        for linear, new in ((layer.self_attn.o_proj, attention), (layer.mlp.down_proj, mlp)):
            if new:
                linear.bias.data = torch.randn(len(linear.bias), generator=generator)


CASES = {
    # name: (family, config changes, shapes, biases, layout, layout written, architecture in the folder)
    "llama": ("llama", {}, uniform, False, "auto", "uniform", "llama"),
    "llama-tied": ("llama", {"tied": True}, uniform, True, "auto", "uniform", "llama"),
    "llama-own-biases": ("llama_bias", {}, uniform, False, "auto", "uniform", "llama"),
    "llama-refused-biases": ("llama", {"hidden_size": 30}, uniform, True, "uniform", "uniform", "seed_oss"),
    "llama-refused-plain": ("llama", {"hidden_size": 30}, uniform, False, "uniform", "uniform", "mistral"),
    "llama-padded": ("llama", {"tied": True}, uneven, True, "padded", "padded", "llama"),
    "llama-uneven": ("llama", {"tied": True}, uneven, True, "auto", "per_layer", "pruned_llama"),
    "llama-uneven-refused": ("llama", {"hidden_size": 30}, uneven, False, "per_layer", "per_layer", "pruned_llama"),
    "mistral": ("mistral", {}, uniform, False, "auto", "uniform", "mistral"),
    "mistral-window-biases": ("mistral", {}, uniform, True, "auto", "per_layer", "pruned_mistral"),
    "mistral-biases": ("mistral", {"sliding_window": None}, uniform, True, "auto", "uniform", "llama"),
    "qwen2": ("qwen2", {}, uneven, False, "padded", "padded", "qwen2"),
    "qwen2-biases": ("qwen2", {"use_sliding_window": False}, uniform, True, "auto", "uniform", "llama"),
    "qwen2-refused": (
        "qwen2",
        {"use_sliding_window": False, "hidden_size": 28},
        uneven,
        True,
        "padded",
        "padded",
        "seed_oss",
    ),
    "qwen2-uneven": ("qwen2", {}, uneven, True, "auto", "per_layer", "pruned_qwen2"),
    "qwen3": ("qwen3", {}, uniform, False, "auto", "uniform", "qwen3"),
    "qwen3-biases": ("qwen3", {}, uniform, True, "auto", "per_layer", "pruned_qwen3"),
    "qwen3-padded": ("qwen3", {"tied": True}, uneven, False, "padded", "padded", "qwen3"),
}


def test_every_layout_computes_the_same_in_a_process_without_this_library(tiny_model, tmp_path):
    """One process for all cases: starting it is the cost."""
    models, folders = {}, []
    for name, (family, changes, shapes, biases, layout, want, _) in CASES.items():
        model = tiny_model(family, **changes).float()
        shapes(model)
        if biases:
            with_biases(model)
        surgery.refresh_config(model)
        folder = tmp_path / name
        folder.mkdir()
        assert write_pruned(model, folder, layout) == want, name
        models[name] = model
        folders.append((folder, want == "per_layer"))
    results = read_elsewhere(tmp_path, folders)
    for name, model in models.items():
        got = results[str(tmp_path / name)]
        tokens = torch.tensor(TOKENS)
        with torch.no_grad():
            logits = model(tokens).logits
        assert got["type"] == CASES[name][-1], name
        # measured 1.4e-6 on logits of size 2 where padded (zero rows change the order of summation), 0 elsewhere
        torch.testing.assert_close(
            got["logits"], logits, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert torch.equal(got["text"], model.generate(tokens, max_new_tokens=6, do_sample=False, pad_token_id=0)), name


@pytest.mark.parametrize("name", ["llama", "llama-uneven"])
def test_a_per_layer_folder_is_small_and_a_uniform_one_is_plain(tiny_model, tmp_path, name):
    family, changes, shapes, _, layout, want, _ = CASES[name]
    model = tiny_model(family, **changes).float()
    shapes(model)
    surgery.refresh_config(model)
    write_pruned(model, tmp_path, layout)
    config = json.loads((tmp_path / "config.json").read_text())
    assert ((tmp_path / "modeling_pruned.py").is_file(), "auto_map" in config) == (want == "per_layer",) * 2
    assert (tmp_path / "generation_config.json").is_file()
    values = sum(parameter.numel() for parameter in model.parameters())
    size = (tmp_path / "model.safetensors").stat().st_size
    assert 4 * values <= size < 4 * values + 8000  # the header


def test_layouts_that_cannot_hold_the_model_name_those_that_can(tiny_model, tmp_path):
    model = tiny_model("llama")
    uneven(model)
    with pytest.raises(ValueError, match=r"equal sizes: prune with alpha=0.*'padded' or 'per_layer'"):
        write_pruned(model, tmp_path, "uniform")
    model = tiny_model("qwen3")
    with_biases(model)
    with pytest.raises(
        ValueError, match=r'norms on queries and keys.*layout "per_layer", or prune with recovery="none"'
    ):
        write_pruned(model, tmp_path, "padded")
    model = tiny_model("mistral")
    with_biases(model, attention=False)
    with pytest.raises(ValueError, match="sliding-window attention"):
        write_pruned(model, tmp_path, "uniform")
    model = tiny_model("llama")
    model.config.model_type = "sandwich_llama"
    with pytest.raises(ValueError, match=r"not know the architecture 'sandwich_llama'; absorb its post-norms"):
        write_pruned(model, tmp_path, "auto")
    assert list(tmp_path.iterdir()) == []


def test_padding_keeps_groups_apart(tiny_model):
    """Queries are added inside their group: rows of group g start at g times the new group size."""
    layer = tiny_model("llama").model.layers[0]
    surgery.keep_query_heads(layer, [0, 3, 5])
    padded = pad_layer(layer, decoder.LayerShape(8, 4, 8, 30))
    rows = padded["self_attn.q_proj.weight"].unflatten(0, (4, 2, 8))
    torch.testing.assert_close(rows[:3, 0], layer.self_attn.q_proj.weight.unflatten(0, (3, 8)))
    assert int(rows[:3, 1].abs().sum()) == int(rows[3].abs().sum()) == 0
    assert padded["mlp.down_proj.weight"].shape == (24, 30)


def test_export_does_not_change_the_model(tiny_model, tmp_path):
    model = tiny_model("llama", tied=True).float()
    uneven(model)
    surgery.refresh_config(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    ShapePlan.of(model, layout="padded").write_model(model, tmp_path)
    assert model.config.to_dict() == config
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.lm_head.weight is model.model.embed_tokens.weight
