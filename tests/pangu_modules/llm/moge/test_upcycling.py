"""Upcycling: the same function where all experts are chosen, where channels go, checkpoints, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_llm import TINY_LLAMA, tiny_module, token_batch

from pangu_modules.llm.causal_lm import CausalLM
from pangu_modules.llm.moge.block import moge_blocks
from pangu_modules.llm.moge.modeling import PanguProMoEForCausalLM
from pangu_modules.llm.moge.upcycling import UpcycleConfig, UpcyclePlan, assign_channels, balanced_assignment

# The tiny Llama has 64 FFN channels: 16 shared, 8 experts of 6.
SIZES: dict[str, Any] = {
    "num_experts": 8,
    "num_groups": 4,
    "num_experts_per_tok": 4,
    "shared_expert_intermediate_size": 16,
}


def upcycled(structure: tuple[UpcyclePlan, ...] | None = None, **fields: Any) -> CausalLM:
    plans = (UpcyclePlan(upcycle=UpcycleConfig(**{**SIZES, **fields})),) if structure is None else structure
    return tiny_module(structure=plans).eval()


@pytest.mark.parametrize("shared", [16, 0])
def test_with_all_experts_and_even_gates_it_is_the_dense_model(shared: int) -> None:
    module = upcycled(num_experts_per_tok=8, shared_expert_intermediate_size=shared, router_start=0)
    tokens = token_batch()["input_ids"]
    ours, dense = module.model(tokens).logits, tiny_module().eval().model(tokens).logits
    # channels are summed in another order; logits are of size 2, the difference measured 1e-6
    torch.testing.assert_close(ours, dense, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "fields", "biased"),
    [
        ("qwen2", {}, True),
        ("qwen2", {"tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": 4}, True),
        ("mistral", {"head_dim": 16}, False),
        ("mistral", {"sliding_window": 64}, False),  # as wide as the positions: it hides nothing
    ],
)
def test_qwen2_and_mistral_start_as_the_dense_model_and_reload(
    architecture: str, fields: dict[str, Any], biased: bool, tmp_path: Any
) -> None:
    plan = UpcyclePlan(upcycle=UpcycleConfig(**{**SIZES, "num_experts_per_tok": 8, "router_start": 0}))
    dense = decoder(architecture, fields)
    tokens = token_batch()["input_ids"]
    expected = dense.model(tokens).logits.detach()
    dense.restructure(plan)
    torch.testing.assert_close(dense.model(tokens).logits, expected, rtol=0, atol=1e-5)
    assert (dense.model.model.layers[0].self_attn.o_proj.bias is not None) == biased
    dense.export(tmp_path / "folder")
    again = PanguProMoEForCausalLM.from_pretrained(tmp_path / "folder").eval()
    assert torch.equal(again(tokens).logits, dense.model(tokens).logits)


def decoder(architecture: str, fields: dict[str, Any]) -> CausalLM:
    """Return a tiny dense model whose biases and gains are not those of the start."""
    torch.manual_seed(0)
    module = CausalLM.Config(architecture=architecture, model_args={**TINY_LLAMA, **fields}).build().eval()
    for parameter in module.model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return module


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("qwen3", {}, "'qwen3' and has norms on queries and keys"),
        ("mistral", {"sliding_window": 8}, "'mistral' and has a sliding window of 8"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding window of 8"),
        ("llama", {"mlp_bias": True}, "without MLP biases"),
        ("gemma", {}, "'gemma'; a Llama, Mistral or Qwen2"),
    ],
)
def test_what_the_mixture_cannot_compute_is_refused_by_name(
    architecture: str, fields: dict[str, Any], message: str
) -> None:
    module = decoder(architecture, fields)
    with pytest.raises(ValueError, match=message):
        module.restructure(UpcyclePlan(upcycle=UpcycleConfig(**SIZES)))


def test_every_channel_is_in_one_expert_and_the_largest_are_shared() -> None:
    generator = torch.Generator().manual_seed(0)
    gate, up = torch.randn(2, 64, 32, generator=generator).unbind()
    down = torch.randn(32, 64, generator=generator)
    shared, experts = assign_channels(gate, up, down, 16, 8)
    assert experts.shape == (8, 6)
    assert sorted([*shared.tolist(), *experts.flatten().tolist()]) == list(range(64))
    size = gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)
    assert float(size[shared].min()) > float(size[experts].max())


def test_channels_of_one_direction_share_an_expert() -> None:
    generator = torch.Generator().manual_seed(1)
    directions = F.normalize(torch.randn(4, 32, generator=generator), dim=1)
    home = torch.arange(4).repeat_interleave(8)[torch.randperm(32, generator=generator)]
    gate = directions[home] + 0.01 * torch.randn(32, 32, generator=generator)
    _, experts = assign_channels(gate, gate, gate.T, 0, 4)
    assert all(len(set(home[members].tolist())) == 1 for members in experts)


def test_assignment_is_balanced_and_greedy() -> None:
    similarity = torch.tensor([[0.9, 0.8], [0.8, 0.9], [0.7, 0.1], [0.1, 0.6]])
    assert balanced_assignment(similarity).tolist() == [[0, 2], [1, 3]]


def test_the_router_prefers_experts_whose_gates_a_token_opens() -> None:
    """Tokens along an expert's mean gate direction choose that expert in its group."""
    module = upcycled()
    (_, block), *_ = moge_blocks(module.model)
    width = 6
    gates = F.normalize(block.experts.gate_up_proj[:, :width], dim=-1).mean(1)
    ids = block.gate(gates - gates.mean(0)).expert_ids
    assert all(expert in ids[expert].tolist() for expert in range(8))
    assert torch.allclose(block.gate.weight.norm(dim=-1).mean(), torch.tensor(0.05), rtol=1e-5)


def test_a_checkpoint_rebuilds_the_mixture(tmp_path: Any) -> None:
    import lightning
    from tiny_text import TokenBatches

    module = upcycled().train()
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=1, logger=False, default_root_dir=tmp_path, enable_progress_bar=False
    )
    trainer.fit(module, datamodule=TokenBatches.Config().build())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = CausalLM.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True, map_location="cpu")
    assert isinstance(again.model, PanguProMoEForCausalLM)
    assert again.config.structure == module.config.structure
    tokens = token_batch()["input_ids"]
    assert torch.equal(again.eval().model(tokens).logits, module.eval().model(tokens).logits)
    assert again.model.lm_head.weight is again.model.model.embed_tokens.weight


def test_it_saves_in_the_released_layout_and_generates(tmp_path: Any) -> None:
    module = upcycled()
    module.model.save_pretrained(tmp_path)
    again = PanguProMoEForCausalLM.from_pretrained(tmp_path).eval()
    prompt = token_batch(batch=1)["input_ids"]
    assert torch.equal(again(prompt).logits, module.model(prompt).logits)
    written = [model.generate(prompt, max_new_tokens=5, do_sample=False) for model in (module.model, again)]
    assert torch.equal(*written)


def test_parameters_stay_and_active_ones_go() -> None:
    with torch.device("meta"):
        module, dense = upcycled(), tiny_module()
    extra = 2 * (8 * 32 + 8)  # router and factors of two layers
    total = sum(parameter.numel() for parameter in module.model.parameters())
    assert total == dense.active_parameters() + extra
    assert module.active_parameters() == total - 2 * 4 * 3 * 6 * 32  # four of eight experts in two layers


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 7, "num_groups": 7, "num_experts_per_tok": 7}, r"leaves 48 channels.*=22 would do"),
        ({"shared_expert_intermediate_size": 64}, "leaves 0 channels"),
        ({"num_experts_per_tok": 3}, "must be a multiple of num_groups"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        upcycled(**fields)


def test_other_models_are_refused() -> None:
    twice = (UpcyclePlan(upcycle=UpcycleConfig(**SIZES)),) * 2
    with pytest.raises(ValueError, match="'PanguProMoE'; a Llama"):
        upcycled(structure=twice)
