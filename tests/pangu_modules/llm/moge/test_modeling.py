"""Pangu Pro MoE in transformers: the released layout, generation, every way to compute experts, and training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from pangu_modules.llm.causal_lm import CausalLM
from pangu_modules.llm.models.loading import load_causal_lm
from pangu_modules.llm.moge.auxiliary_loss import auxiliary_loss, auxiliary_objective
from pangu_modules.llm.moge.block import recorded_routings
from pangu_modules.llm.moge.checkpoint import split_experts, stack_experts
from pangu_modules.llm.moge.configuration import PanguProMoEConfig
from pangu_modules.llm.moge.modeling import PanguProMoEForCausalLM

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 8,
    "num_groups": 4,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
    "max_position_embeddings": 128,
    "eos_token_id": 3,
}


def released(folder: Path, dtype: torch.dtype = torch.bfloat16, without: str = "-", **fields: Any) -> dict[str, Tensor]:
    """Write a random checkpoint in the released naming, independently of the model; return its tensors."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"model.embed_tokens.weight": (64, 32), "lm_head.weight": (64, 32), "model.norm.weight": (32,)}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        sizes |= {f"{prefix}.{name}.weight": (32,) for name in ("input_layernorm", "post_attention_layernorm")}
        for name, rows in {"q_proj": 32, "k_proj": 16, "v_proj": 16, "o_proj": 32}.items():
            sizes |= {f"{prefix}.self_attn.{name}.weight": (rows, 32), f"{prefix}.self_attn.{name}.bias": (rows,)}
        sizes |= {f"{prefix}.mlp.gate.weight": (8, 32), f"{prefix}.mlp.router_scale": (1, 8)}
        widths = {f"experts.{expert}": 16 for expert in range(8)} | {"shared_expert": 24}
        for name, width in widths.items():
            sizes |= {f"{prefix}.mlp.{name}.{kind}.weight": (width, 32) for kind in ("gate_proj", "up_proj")}
            sizes[f"{prefix}.mlp.{name}.down_proj.weight"] = (32, width)
    state = {name: (torch.randn(size, generator=generator) * 0.3).to(dtype) for name, size in sizes.items()}
    state = {name: tensor for name, tensor in state.items() if without not in name}
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "PanguProMoE", "architectures": ["PanguProMoEForCausalLM"], "rope_theta": 16e6}
    (folder / "config.json").write_text(json.dumps({**config, **TINY, **fields}))
    return state


def naive_logits(state: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Compute the logits of one sequence from the released tensors, head by head and expert by expert."""
    weights = {name: tensor.double() for name, tensor in state.items()}
    x = weights["model.embed_tokens.weight"][ids]
    positions, frequencies = torch.arange(len(ids)).double(), 16e6 ** (-torch.arange(0, 8, 2).double() / 8)
    angles = (positions[:, None] * frequencies).repeat(1, 2)

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[name]

    def rotate(head: Tensor) -> Tensor:
        return head * angles.cos() + torch.cat((-head[:, 4:], head[:, :4]), 1) * angles.sin()

    def mlp(x: Tensor, name: str) -> Tensor:
        gate, up, down = (weights[f"{name}.{kind}_proj.weight"] for kind in ("gate", "up", "down"))
        return down @ (F.silu(gate @ x) * (up @ x))

    for layer in range(2):
        name = f"model.layers.{layer}"
        y = norm(x, f"{name}.input_layernorm.weight")
        q, k, v = (
            y @ weights[f"{name}.self_attn.{kind}_proj.weight"].T + weights[f"{name}.self_attn.{kind}_proj.bias"]
            for kind in "qkv"
        )
        heads = []
        for head in range(4):
            mine, shared = slice(8 * head, 8 * head + 8), slice(8 * (head // 2), 8 * (head // 2) + 8)
            scores = rotate(q[:, mine]) @ rotate(k[:, shared]).T / 8**0.5
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            heads.append(scores.softmax(-1) @ v[:, shared])
        x = x + torch.cat(heads, 1) @ weights[f"{name}.self_attn.o_proj.weight"].T
        x = x + weights[f"{name}.self_attn.o_proj.bias"]
        y = norm(x, f"{name}.post_attention_layernorm.weight")
        rows = []
        for token in y:
            scores = (weights[f"{name}.mlp.gate.weight"] @ token).softmax(0)
            total = mlp(token, f"{name}.mlp.shared_expert")
            for group in range(4):
                expert = 2 * group + int(scores[2 * group + 1] > scores[2 * group])
                gate = scores[expert] * weights[f"{name}.mlp.router_scale"][0, expert]
                total = total + gate * mlp(token, f"{name}.mlp.experts.{expert}")
            rows.append(total)
        x = x + torch.stack(rows)
    return norm(x, "model.norm.weight") @ weights["lm_head.weight"].T


def test_a_released_checkpoint_comes_back_byte_by_byte_with_the_right_logits(tmp_path: Path) -> None:
    state = released(tmp_path / "released")
    model: Any = load_causal_lm(str(tmp_path / "released"), dtype=torch.bfloat16)
    assert isinstance(model, PanguProMoEForCausalLM)
    stacked = stack_experts(state)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {
        name: tuple(value.shape) for name, value in stacked.items()
    }
    assert all(torch.equal(value, stacked[name]) for name, value in model.state_dict().items())
    model.save_pretrained(tmp_path / "saved")
    saved = (tmp_path / "saved" / "model.safetensors").read_bytes()
    assert saved == (tmp_path / "released" / "model.safetensors").read_bytes()
    ids = [5, 9, 60, 2, 2, 31, 17]
    logits = model.float().eval()(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits.double(), naive_logits(state, ids), rtol=0, atol=1e-5)  # values to 2; seen 4e-7


def test_shards_are_read_and_written(tmp_path: Path) -> None:
    state = released(tmp_path / "released")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "released")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    files = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 2
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "shards")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_stacking_and_splitting_undo_each_other(tmp_path: Path) -> None:
    state = released(tmp_path / "released")
    back = split_experts(stack_experts(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    del state["model.layers.1.mlp.experts.2.up_proj.weight"]
    with pytest.raises(ValueError, match=r"no model\.layers\.1\.mlp\.experts\.2\.up_proj\.weight"):
        stack_experts(state)


@pytest.mark.parametrize("missing", [{"without": "router_scale"}, {"router_scale": False}])
def test_gate_factors_must_fit_the_configuration(tmp_path: Path, missing: dict[str, Any]) -> None:
    released(tmp_path / "released", **missing)
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.router_scale .* set router_scale="):
        AutoModelForCausalLM.from_pretrained(tmp_path / "released")
    both = tmp_path / "both"
    released(both, without="router_scale", router_scale=False)
    assert AutoModelForCausalLM.from_pretrained(both).model.layers[0].mlp.router_scale is None


def test_tensors_that_released_loaders_skip_are_skipped(tmp_path: Path) -> None:
    state = released(tmp_path / "released")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(state | extra, tmp_path / "released" / "model.safetensors", metadata={"format": "pt"})
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "released", output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]


def model(**fields: Any) -> Any:
    torch.manual_seed(0)
    return PanguProMoEForCausalLM(PanguProMoEConfig(**{**TINY, "initializer_range": 0.3, **fields})).eval()


@torch.no_grad()
def test_every_implementation_gives_the_same_logits() -> None:
    # A Llama that is asked first says no, and transformers remembers that where our class would inherit it.
    assert not LlamaForCausalLM._can_set_experts_implementation()
    ours = model()
    assert ours.config._experts_implementation == "moge"
    ids = torch.randint(0, 64, (2, 9))
    want = ours.double()(ids).logits
    for name in ("eager", "batched_mm", "moge"):
        ours.set_experts_implementation(name)
        # Values to 6; seen 0: norms round to float32, which swallows differences of 1e-15, or makes one of 1e-6.
        torch.testing.assert_close(ours(ids).logits, want, rtol=0, atol=1e-5)
    ours.float().set_experts_implementation("grouped_mm")  # no float64
    torch.testing.assert_close(ours(ids).logits, want.float(), rtol=0, atol=5e-5)  # seen 6e-6
    with pytest.raises(ValueError, match="not supported"):
        ours.set_experts_implementation("magic")


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_generates_with_a_cache_what_it_generates_without(attention: str) -> None:
    ours = model()
    ours.set_attn_implementation(attention)
    prompt = torch.randint(4, 64, (2, 7))
    options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    with_cache = ours.generate(prompt, **options)
    assert with_cache.shape == (2, 17)
    assert torch.equal(with_cache, ours.generate(prompt, use_cache=False, **options))


def test_is_registered(tmp_path: Path) -> None:
    config = AutoConfig.for_model("PanguProMoE")
    assert isinstance(config, PanguProMoEConfig)
    assert config.rope_parameters["rope_theta"] == 16e6
    assert PanguProMoEConfig(rope_theta=5e5).rope_parameters["rope_theta"] == 5e5
    model().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["PanguProMoEForCausalLM"]


def test_the_72b_configuration_has_the_released_sizes() -> None:
    with torch.device("meta"):
        module = CausalLM.Config(architecture="PanguProMoE").build()
    assert sum(parameter.numel() for parameter in module.model.parameters()) == 71_988_781_056
    assert module.active_parameters() == 16_498_139_136
    assert (
        len(
            split_experts(
                {
                    name: tensor[:, :2] if tensor.ndim == 3 else tensor
                    for name, tensor in module.model.state_dict().items()
                }
            )
        )
        == 9939
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sandwich_norm": True, "qk_rope_dim": 64}, r"Pangu Pro MoE V2 \(it has qk_rope_dim, sandwich_norm\)"),
        ({"routed_scaling_factor": 2.5}, r"V2 \(it has routed_scaling_factor\)"),
        ({"num_experts": 9}, r"num_experts \(N\) must be divisible by num_groups \(M\): 9"),
        ({"num_experts_per_tok": 3}, r"num_experts_per_tok \(K\) = 3 must be a multiple"),
        ({"num_key_value_heads": 3}, "num_attention_heads=4 must be a multiple of num_key_value_heads=3"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ],
)
def test_bad_configurations(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "PanguProMoE", **TINY, **fields}))
    with pytest.raises(ValueError, match=message):
        AutoConfig.from_pretrained(tmp_path)


def trainee(**fields: Any) -> Any:
    torch.manual_seed(0)
    module: Any = CausalLM.Config(architecture="PanguProMoE", model_args={**TINY, "initializer_range": 0.3}, **fields)
    return module.build()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_objective_adds_the_auxiliary_loss_of_the_real_tokens(checkpointing: bool) -> None:
    from pangu_modules.training.objectives import evaluate

    module = trainee(gradient_checkpointing=checkpointing)
    module.objectives["balance"] = auxiliary_objective(0.5, "micro")
    mask = torch.ones(3, 8, dtype=torch.long)
    mask[1, 5:] = 0
    batch = {"input_ids": torch.randint(4, 64, (3, 8)), "attention_mask": mask}
    found = evaluate(module.objectives, module, batch, module.compute_outputs(batch))
    loss, values = found.total, found.values
    want = auxiliary_loss(recorded_routings(module.model), mask.flatten())
    assert values["balance"].item() == pytest.approx(want.item(), abs=1e-7)
    assert loss.item() == pytest.approx(values["language_modelling"].item() + 0.5 * want.item(), abs=1e-6)
    loss.backward()
    assert all(parameter.grad is not None for parameter in module.model.parameters())
    gate = module.model.model.layers[1].mlp.gate.weight.grad.clone()
    module.zero_grad()
    module.objectives.pop("balance")
    plain = evaluate(module.objectives, module, batch, module.compute_outputs(batch)).total
    plain.backward()
    assert not torch.equal(gate, module.model.model.layers[1].mlp.gate.weight.grad)


@pytest.mark.parametrize("router", ["topk", "deepseek"])
def test_baseline_routers_train_and_have_as_many_active_parameters(router: str) -> None:
    sizes = {**TINY, "router": router}
    module: Any = CausalLM.Config(architecture="PanguProMoE", model_args=sizes).build()
    assert module.active_parameters() == trainee().active_parameters()
    module.compute_outputs({"input_ids": torch.randint(4, 64, (2, 6))})["logits"].sum().backward()
    assert module.model.model.layers[0].mlp.gate.weight.grad.abs().max() > 0


@torch.no_grad()
def test_export_writes_the_released_layout(tmp_path: Path) -> None:
    module = trainee()
    module.export(tmp_path / "exported")
    names = load_file(tmp_path / "exported" / "model.safetensors").keys()
    assert names == split_experts(module.model.state_dict()).keys()
    again = PanguProMoEForCausalLM.from_pretrained(tmp_path / "exported")
    ids = torch.randint(0, 64, (2, 9))
    assert torch.equal(again(ids).logits, module.model.eval()(ids).logits)
    with pytest.raises(ValueError, match="transformers does not know the architecture 'PanguProMoE'"):
        module.export(tmp_path / "gguf", "gguf")
