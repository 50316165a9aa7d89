"""Binary-aware initialization: the dense function stays, the binary one is the trained one, scales are found."""

import copy

import pytest
import torch
from tiny_llm import TINY_LLAMA, tiny_module, token_batch

from pangu_modules import BinarizePlan, CausalLM, OneBitConfig
from pangu_modules.llm.onebit import initialization
from pangu_modules.llm.onebit.initialization import (
    Group,
    apply_scales,
    binary_aware_init,
    binary_weights,
    folding_groups,
    set_input_scales,
    single_groups,
)
from pangu_modules.llm.onebit.plan import binary_layers


def random_scales(groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.exp(0.5 * torch.randn(group.channels, generator=generator)) for group in groups]


def logits(module, batch=None):
    with torch.no_grad():
        return module.compute_outputs(batch or token_batch())["logits"]


def biased_module(seed=0):
    """A Qwen2 layout: biases on q, k and v, of which v's must be folded too."""
    torch.manual_seed(seed)
    module = CausalLM.Config(architecture="qwen2", model_args=TINY_LLAMA).build()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("build", [tiny_module, biased_module])
def test_folding_keeps_the_dense_function(build):
    module = build()
    before = logits(module)
    groups = folding_groups(module.model, OneBitConfig())
    assert len(groups) == 8
    assert apply_scales(module.model, groups, random_scales(groups)) == {}
    difference = (logits(module) - before).abs().max() / before.abs().max()
    assert difference < 1e-5  # measured 7e-7; the method states 1e-4


@pytest.mark.parametrize("build", [tiny_module, biased_module])
def test_the_folded_binary_model_is_the_one_that_stage_1_trains(build):
    """Folded and then replaced by its sign, the model computes what `binary_weights` computes on the original."""
    module = build()
    groups = folding_groups(module.model, OneBitConfig())
    scales = random_scales(groups)
    weights = binary_weights(module.model, groups, scales)
    batch = token_batch()
    with torch.no_grad():
        trained = torch.func.functional_call(module.model, weights, kwargs={"input_ids": batch["input_ids"]}).logits
    apply_scales(module.model, groups, scales)
    module.restructure(BinarizePlan(onebit=OneBitConfig(method="sign", init="svid")))
    folded = logits(module, batch)
    assert (folded - trained).abs().max() / trained.abs().max() < 1e-5  # measured 1e-6


def test_scales_per_layer_keep_both_functions():
    config = OneBitConfig(input_scale="per_linear")
    module = tiny_module()
    before = logits(module)
    groups = single_groups(module.model, config)
    scales = random_scales(groups)
    weights = binary_weights(module.model, groups, scales)
    batch = token_batch()
    with torch.no_grad():
        trained = torch.func.functional_call(module.model, weights, kwargs={"input_ids": batch["input_ids"]}).logits
    kept = apply_scales(module.model, groups, scales)
    assert len(kept) == 14
    module.restructure(BinarizePlan(onebit=config))
    set_input_scales(module.model, kept)
    assert (logits(module) - before).abs().max() / before.abs().max() < 1e-5
    for layer in binary_layers(module.model).values():
        layer.set_phase(104.6, hard=True)
    assert (logits(module, batch) - trained).abs().max() / trained.abs().max() < 1e-5


def test_grouped_channels_equal_loops():
    group = Group(("o",), ("o",), "v", channels=6, repeats=3, width=2)
    scale = torch.arange(1.0, 7.0)
    spread = [scale[2 * kv + column].item() for kv in range(3) for _ in range(3) for column in range(2)]
    assert group.spread(scale).tolist() == spread
    weight = torch.arange(4 * 18.0).view(4, 18)
    gathered = group.gathered(weight)
    assert gathered.shape == (12, 6)
    for row in range(4):
        for query in range(3):
            for kv in range(3):
                for column in range(2):
                    old = weight[row, (kv * 3 + query) * 2 + column]
                    assert gathered[row * 3 + query, 2 * kv + column] == old


def test_only_readers_of_binarized_layers_get_scales():
    module = tiny_module()
    config = OneBitConfig(targets=("k_proj", "down_proj"))
    groups = folding_groups(module.model, config)
    assert len(groups) == 4
    assert len(groups[0].readers) == 3
    assert [name.rpartition(".")[2] for name in groups[0].binary] == ["k_proj"]
    before = logits(module)
    apply_scales(module.model, groups, random_scales(groups))
    assert (logits(module) - before).abs().max() / before.abs().max() < 1e-5


@pytest.mark.parametrize("input_scale", ["fold", "per_linear"])
def test_learning_lowers_the_loss_of_the_sign_and_leaves_no_gradients(input_scale):
    module = tiny_module()
    config = OneBitConfig(init_steps=8, init_lr=0.03, input_scale=input_scale)
    report = binary_aware_init(module.model, [token_batch(seed=1)], config)
    assert len(report.losses) == 8
    assert report.losses[-1] < report.losses[0] - 0.02
    assert all(parameter.grad is None for parameter in module.parameters())
    assert len(report.input_scales) == (14 if input_scale == "per_linear" else 0)


def test_the_rank_one_scale_brings_the_sign_nearer_to_the_weights():
    module = tiny_module()
    with torch.no_grad():  # columns of different sizes, as outlier channels make them
        for name, parameter in module.named_parameters():
            if name.endswith("proj.weight"):
                parameter.mul_(torch.exp(torch.randn(parameter.shape[1], generator=torch.Generator().manual_seed(3))))
    groups = single_groups(module.model, OneBitConfig(init="svid", input_scale="per_linear"))
    ones = binary_weights(module.model, groups, [torch.ones(group.channels) for group in groups])
    found = [initialization._rank_one_scale(module.model, group) for group in groups]
    ours = binary_weights(module.model, groups, found)

    def error(weights):
        return sum(
            float((module.model.get_parameter(name) - weight).square().sum()) for name, weight in weights.items()
        )

    assert error(ours) < 0.7 * error(ones)


def test_svid_needs_no_batches():
    module = tiny_module()
    before = logits(module)
    report = binary_aware_init(module.model, [], OneBitConfig(init="svid"))
    assert report.losses == []
    assert (logits(module) - before).abs().max() / before.abs().max() < 1e-5


def test_learning_stops_when_it_diverges(monkeypatch):
    module = tiny_module()
    monkeypatch.setattr(initialization, "DIVERGED", 0.5)
    with pytest.raises(ValueError, match=r"init='learned' diverges: .* lower init_lr=0\.005"):
        binary_aware_init(module.model, [token_batch()], OneBitConfig())


def test_learning_needs_text():
    with pytest.raises(ValueError, match="at least one batch"):
        binary_aware_init(tiny_module().model, [], OneBitConfig())


def test_unknown_blocks_cannot_be_folded():
    module = tiny_module()
    model = copy.deepcopy(module.model)
    model.config.model_type = "gemma2"
    with pytest.raises(ValueError, match=r"does not know the blocks of 'gemma2'.*per_linear"):
        folding_groups(model, OneBitConfig())
