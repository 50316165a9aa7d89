"""The plan: which layers, what it refuses, finalization, and the sizes of the published models."""

import pytest
import torch
from tiny_llm import TINY_LLAMA, tiny_module, token_batch
from torch import nn

from pangu_modules import BinarizePlan, CausalLM, LoRAPlan, OneBitConfig, finalize_module
from pangu_modules.llm.models.loading import new_causal_lm
from pangu_modules.llm.onebit.layer import InputScaledLinear, ProgressiveBinaryLinear
from pangu_modules.llm.onebit.plan import (
    binarized_linears,
    binary_layers,
    check_weights,
    rows_with_other_values,
    target_names,
)
from pangu_modules.llm.onebit.sizes import sizes_of
from pangu_modules.training.structure import plan_from

DENSE = OneBitConfig(init="none")
PER_LAYER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def binarized(**fields):
    module = tiny_module()
    module.restructure(BinarizePlan(onebit=DENSE.derive(**fields), source="binarize"))
    return module


def test_replaces_the_layers_of_the_blocks_and_nothing_else():
    module = binarized()
    names = list(binary_layers(module.model))
    assert names == [name for name, layer in module.model.named_modules() if name.endswith(PER_LAYER)]
    assert len(names) == 14
    assert isinstance(module.model.lm_head, nn.Linear)
    module.config.structure[0].apply(module)  # again: nothing changes
    assert list(binary_layers(module.model)) == names


def test_excluded_layers_stay_dense():
    module = binarized(exclude=(r"layers\.0\.", r"down_proj$"))
    assert len(binary_layers(module.model)) == 6
    assert type(module.model.model.layers[0].mlp.up_proj) is nn.Linear


def test_final_layers_are_plain_and_hold_two_values():
    module = binarized()
    batch = token_batch()
    for layer in binary_layers(module.model).values():
        layer.set_phase(104.6, hard=True)
    with torch.no_grad():
        before = module.compute_outputs(batch)["logits"]
    names = finalize_module(module)
    plan = module.config.structure[0]
    assert plan.final
    assert plan.source == "binarize"
    linears = binarized_linears(module.model, plan)
    assert list(linears) == names
    assert all(type(linear) is nn.Linear for linear in linears.values())
    assert sum(rows_with_other_values(linear) for linear in linears.values()) == 0
    with torch.no_grad():
        torch.testing.assert_close(module.compute_outputs(batch)["logits"], before, rtol=1e-5, atol=1e-5)
    assert set(module.state_dict()) == set(tiny_module().state_dict())


@pytest.mark.parametrize("fields", [{"method": "onebit"}, {"init": "svid", "input_scale": "per_linear"}])
def test_final_layers_keep_their_input_scale(fields):
    module = binarized(**fields)
    finalize_module(module)
    linears = binarized_linears(module.model, module.config.structure[0])
    assert all(type(linear) is InputScaledLinear for linear in linears.values())


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("fields", [{}, {"method": "onebit"}, {"scales": "learned"}])
def test_a_checkpoint_rebuilds_the_structure(tmp_path, fields, final):
    from lightning.pytorch import Trainer

    module = binarized(**fields)
    for layer in binary_layers(module.model).values():
        layer.set_phase(2.5)
    if final:
        finalize_module(module)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = CausalLM.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    batch = token_batch()
    with torch.no_grad():
        assert torch.equal(again.compute_outputs(batch)["logits"], module.compute_outputs(batch)["logits"])
    assert again.config.structure == module.config.structure


def test_the_plan_is_found_by_its_kind():
    plan = plan_from({"kind": "binarize", "onebit": {"method": "ste", "init": "none"}, "final": True})
    assert isinstance(plan, BinarizePlan)
    assert plan.onebit.method == "ste"


def test_latent_weights_are_not_handed_out_as_binary():
    module = binarized()
    with pytest.raises(ValueError, match="still latent"):
        binarized_linears(module.model, module.config.structure[0])
    ternary = binarized(method="bitnet_b158")
    finalize_module(ternary)
    with pytest.raises(ValueError, match="ternary"):
        binarized_linears(ternary.model, ternary.config.structure[0])
    with pytest.raises(ValueError, match="no binarized layers"):
        finalize_module(tiny_module())


def test_no_match_lists_the_names():
    with pytest.raises(ValueError, match=r"no layer matches qproj\. Did you mean 'q_proj'\? Linear layers: .*up_proj"):
        target_names(tiny_module().model, DENSE.derive(targets=("qproj",)))
    with pytest.raises(ValueError, match="and exclude layers"):
        target_names(tiny_module().model, DENSE.derive(exclude=("layers",)))


def test_adapters_are_refused():
    module = tiny_module()
    module.restructure(LoRAPlan())
    with pytest.raises(ValueError, match=r"q_proj is a Linear, not torch.nn.Linear: merge the LoRA adapters"):
        target_names(module.model, DENSE)


def test_other_classes_are_refused():
    model = new_causal_lm("gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 32})
    with pytest.raises(ValueError, match=r"c_attn is a Conv1D, not torch.nn.Linear: its weight is transposed"):
        target_names(model, DENSE.derive(targets=("c_attn",)))

    class Linear8bit(nn.Linear):
        pass

    module = tiny_module()
    module.model.model.layers[1].self_attn.q_proj = Linear8bit(32, 32)
    with pytest.raises(ValueError, match=r"1\.self_attn\.q_proj is a Linear8bit.*unquantized"):
        target_names(module.model, DENSE)


def test_tied_and_output_layers_are_refused():
    module = tiny_module()
    with pytest.raises(ValueError, match=r"the weight of lm_head is also .*embed_tokens"):
        target_names(module.model, DENSE.derive(targets=("lm_head",)))
    untied = tiny_module(model_args={"tie_word_embeddings": False})
    with pytest.raises(ValueError, match="lm_head is the output layer, which stays dense"):
        target_names(untied.model, DENSE.derive(targets=("lm_head",)))


def test_weights_are_checked():
    module = tiny_module()
    layer = module.model.model.layers[0].mlp.up_proj
    assert check_weights(module.model, DENSE) == []
    with torch.no_grad():
        layer.weight[3] = 0
    assert check_weights(module.model, DENSE) == ["model.layers.0.mlp.up_proj"]
    with torch.no_grad():
        layer.weight[3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.up_proj: the weight holds NaN"):
        check_weights(module.model, DENSE)
    with pytest.raises(ValueError, match=r"bfloat16 cannot take small steps.*bf16-mixed"):
        check_weights(tiny_module().model.bfloat16(), DENSE)


def test_builds_on_the_meta_device():
    with torch.device("meta"):
        config = CausalLM.Config(architecture="llama", model_args=TINY_LLAMA, structure=(BinarizePlan(onebit=DENSE),))
        module = config.build()
        module.compute_outputs(module.example_batch(1))
    assert all(isinstance(layer, ProgressiveBinaryLinear) for layer in binary_layers(module.model).values())


SHAPES = {  # hidden, intermediate, layers, query heads, KV heads, vocabulary, tied
    "SmolLM2-135M": (576, 1536, 30, 9, 3, 49_152, True),
    "3B": (3200, 8640, 26, 32, 32, 32_000, False),
    "LLaMA2-7B": (4096, 11_008, 32, 32, 32, 32_000, False),
}


@pytest.mark.parametrize(
    ("name", "parameters", "binarized", "rows", "inputs", "file_megabytes", "dense_megabytes"),
    [
        ("SmolLM2-135M", 134_515_008, 106_168_320, 155_520, 149_760, 70.3, 269.0),
        ("3B", 3_426_473_600, 3_221_504_000, 865_280, 723_840, 814, 6853),
        ("LLaMA2-7B", 6_738_415_616, 6_476_005_376, 1_359_872, 1_138_688, 1337, 13_477),
    ],
)
def test_published_sizes(name, parameters, binarized, rows, inputs, file_megabytes, dense_megabytes):
    hidden, intermediate, layers, heads, kv_heads, vocabulary, tied = SHAPES[name]
    arguments = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }
    with torch.device("meta"):
        model = new_causal_lm("llama", arguments)
    half = sizes_of(model, OneBitConfig(scale_dtype="float16"))
    assert (half.parameters, half.binarized, half.row_scales) == (parameters, binarized, rows)
    assert half.input_scales == 0
    assert round(half.packed_bytes / 1e6, 1 if half.packed_bytes < 1e8 else 0) == file_megabytes
    assert round(half.dense_bytes / 1e6, 1 if half.dense_bytes < 1e9 else 0) == dense_megabytes
    whole = sizes_of(model, OneBitConfig(input_scale="per_linear"))
    assert whole.input_scales == inputs
    if name == "SmolLM2-135M":
        rounded = [round(size.bytes_per_weight, 4) for size in (half, sizes_of(model, OneBitConfig()), whole)]
        assert rounded == [0.1279, 0.1309, 0.1365]
