"""What a fused model exports is what the loaders of vLLM and vllm-ascend look for, and loads on the CPU.

The loaders' tables of names are in `vllm_layouts.json`, each with where it was read.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from npu_checks import through
from npu_emulator import NpuEmulator
from safetensors.torch import load_file
from tiny_moge import TINY_MOGE, moge_module
from transformers import AutoModelForCausalLM

from pangu_modules.ascend.ops.fusing import fuse
from pangu_modules.ascend.ops.fusing.seams import empty_seams, fill_seams
from pangu_modules.llm.causal_lm import CausalLM

LAYOUTS = json.loads((Path(__file__).parent / "vllm_layouts.json").read_text())
LLAMA = {
    **{name: TINY_MOGE[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")},
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}


def placed(name, layout, num_experts):
    """Return the loader's parameter for a tensor of the checkpoint and the part of it, as its table says; or None."""
    if any(part in name for part in layout["skipped"]):
        return None
    expert = re.fullmatch(r"(.*\.mlp)\.experts\.(\d+)\.(\w+)\.(weight)", name)
    if expert and layout["experts"]:
        assert int(expert[2]) < num_experts
        parameter, part = layout["experts"][expert[3]]
        return f"{expert[1]}.{parameter}{expert[4]}", (int(expert[2]), part)
    for joined, own, part in layout["joined"]:
        if own in name:
            return name.replace(own, joined), part
    return name, None


def wanted(layout, layers, num_experts):
    """Return every part of every parameter that the loader's model has."""
    names = [f"model.layers.{layer}.{name}" for layer in range(layers) for name in layout["layer"]] + layout["model"]
    parts = set()
    for name in names:
        experts = [(place, part) for place, part in layout["experts"].values() if place in name]
        joined = [part for other, _, part in layout["joined"] if other.lstrip(".") in name]
        if experts:
            parts |= {(name, (e, part)) for e in range(num_experts) for _, part in experts}
        else:
            parts |= {(name, part) for part in joined or [None]}
    return parts


@pytest.mark.parametrize("architecture", LAYOUTS)
def test_export_of_a_fused_model_fills_the_loaders_parameters(architecture, tmp_path):
    """Would fail if a name changed on the way, or a tensor were missing, of a fused step through the emulator too."""
    layout = LAYOUTS[architecture]
    fields = {} if architecture == "PanguProMoE" else {"model_args": LLAMA}
    module = moge_module() if not fields else CausalLM.Config(architecture=architecture, **fields).build()
    fuse(module)
    fill_seams("cpu")
    try:
        with through(NpuEmulator()) as emulator:
            module.training_step({"input_ids": torch.arange(10).view(2, 5)}, 0).backward()
    finally:
        empty_seams("cpu")
    assert emulator.calls["npu_fusion_attention"] == 2
    module.export(tmp_path / "export")
    names = [name for file in (tmp_path / "export").glob("*.safetensors") for name in load_file(file)]
    found = [place for name in names if (place := placed(name, layout, TINY_MOGE["num_experts"])) is not None]
    assert len(found) == len(set(found))
    assert set(found) == wanted(layout, 2, TINY_MOGE["num_experts"])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert loaded.config._attn_implementation == "sdpa"
    ids = torch.arange(10).view(2, 5)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, module.eval().model(ids).logits, rtol=0, atol=0)
