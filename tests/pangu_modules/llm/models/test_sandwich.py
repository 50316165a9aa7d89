"""The sandwich-norm model: its equations, its place in transformers, and surgery on it."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from pangu_modules.llm.calibration.probe import hidden_norms
from pangu_modules.llm.models import decoder
from pangu_modules.llm.pruning import surgery
from pangu_modules.llm.pruning.pangu_light import clap
from pangu_modules.llm.pruning.pangu_light.importance import collect_importance
from pangu_modules.llm.pruning.pangu_light.slnp import slnp_factors

IDS = torch.randint(1, 61, (2, 9), generator=torch.Generator().manual_seed(0))
SIZES = {"hidden_size": 24, "intermediate_size": 28, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8}


def sandwich_model(randomised: bool = True, **changes):
    from pangu_modules.llm.models.sandwich import SandwichLlamaConfig, SandwichLlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(7)
        fields = SIZES | {"vocab_size": 61, "num_hidden_layers": 4, "pad_token_id": 0, "eos_token_id": None} | changes
        model = SandwichLlamaForCausalLM(SandwichLlamaConfig(**fields)).double().eval()
        if randomised:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.15 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def assert_same_logits(loaded, model):
    # equal weights in differently aligned memory: 4e-16 measured
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=0, atol=1e-12)


@torch.no_grad()
def test_forward_follows_the_equations():
    model = sandwich_model()
    decoder = model.model
    x = decoder.embed_tokens(IDS)
    embeddings = decoder.rotary_emb(x, torch.arange(9)[None])

    def rms_norm(norm, values):
        values = values.float()
        scale = torch.tensor([[1 / math.sqrt(float((v * v).mean()) + 1e-6) for v in row] for row in values])
        return norm.weight * (values * scale[..., None]).double()

    for layer in decoder.layers:
        normed = rms_norm(layer.input_layernorm, x)
        attention = layer.self_attn(normed, position_embeddings=embeddings, attention_mask=None)[0]
        x = x + rms_norm(layer.post_self_attn_layernorm, attention)
        ffn = layer.mlp(rms_norm(layer.post_attention_layernorm, x))
        x = x + rms_norm(layer.post_mlp_layernorm, ffn)
    want = model.lm_head(rms_norm(decoder.norm, x))
    # float32 inside the norms, scales rounded once on each side: 1e-7 measured on logits of size 3
    torch.testing.assert_close(model(IDS).logits, want, rtol=0, atol=5e-6)


def test_post_norm_gains_start_scaled_by_depth():
    model = sandwich_model(randomised=False, post_norm_attention_scale=0.5, post_norm_mlp_scale=3.0)
    for layer in model.model.layers:
        assert torch.equal(layer.post_self_attn_layernorm.weight, torch.full((24,), 0.25, dtype=torch.float64))
        assert torch.equal(layer.post_mlp_layernorm.weight, torch.full((24,), 1.5, dtype=torch.float64))
        assert torch.equal(layer.input_layernorm.weight, torch.ones(24, dtype=torch.float64))


def test_embedding_starts_at_its_own_range(tmp_path):
    from transformers import AutoModelForCausalLM

    model = sandwich_model(randomised=False, vocab_size=4000, embedding_initializer_range=0.4)
    weights = model.model.embed_tokens.weight.detach()
    assert float(weights.std()) == pytest.approx(0.4, rel=0.02)  # 96000 draws: 0.2 % is one standard error
    assert float(weights[0].abs().max()) == 0  # the padding token's
    assert float(model.lm_head.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(loaded.model.embed_tokens.weight, weights)


def test_generation_with_and_without_cache_agrees():
    model = sandwich_model()
    options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    cached, plain = (model.generate(IDS, use_cache=use, **options) for use in (True, False))
    assert cached.shape == (2, 18)
    assert torch.equal(cached, plain)


def test_saved_model_loads_through_auto_classes(tmp_path):
    from transformers import AutoModelForCausalLM

    model = sandwich_model(post_norm_mlp_scale=2.0)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert type(loaded) is type(model)
    assert loaded.config.post_norm_mlp_scale == 2.0
    assert_same_logits(loaded, model)
    assert len(loaded(IDS, output_hidden_states=True).hidden_states) == 5


def test_all_other_names_are_llamas():
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = sandwich_model().state_dict()
    llama = LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=61, num_hidden_layers=4)).state_dict()
    extra = {name for name in ours if "post_self_attn_layernorm" in name or "post_mlp_layernorm" in name}
    assert len(extra) == 8
    assert set(ours) - extra == set(llama)


def test_training_reaches_every_parameter():
    model = sandwich_model().train()
    model(IDS, labels=IDS).loss.backward()
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in model.parameters())


@torch.no_grad()
def test_removing_heads_and_channels_equals_masking():
    model = sandwich_model()
    reference = copy.deepcopy(model)
    decoder.check_supported(model)
    for layer, whole in zip(model.model.layers, reference.model.layers, strict=True):
        surgery.keep_kv_groups(layer, [0, 2])
        surgery.keep_channels(layer, range(3, 20))
        whole.self_attn.o_proj.weight[:, 16:32] = 0
        whole.mlp.down_proj.weight[:, :3] = 0
        whole.mlp.down_proj.weight[:, 20:] = 0
    surgery.refresh_config(model)
    assert (model.config.num_attention_heads, model.config.intermediate_size) == (4, 17)
    torch.testing.assert_close(model(IDS).logits, reference(IDS).logits, rtol=0, atol=1e-12)


def test_width_surgery_cuts_all_four_norms():
    model = sandwich_model()
    assert len(hidden_norms(model)) == 4 * 4 + 1
    surgery.keep_hidden(model, range(2, 18))
    assert {tuple(norm.weight.shape) for norm in hidden_norms(model).values()} == {(16,)}
    assert model(IDS).logits.shape == (2, 9, 61)


@torch.no_grad()
def test_channel_scores_cover_the_post_norms():
    model = sandwich_model()
    before = collect_importance(model, [{"input_ids": IDS}]).hidden
    model.model.layers[3].post_mlp_layernorm.weight[5] *= 1000  # the last norm but one: nothing else sees it
    after = collect_importance(model, [{"input_ids": IDS}]).hidden
    assert float(after[5]) > 10 * float(before[5])


def test_slnp_may_spare_the_post_norms():
    model = sandwich_model()
    every = slnp_factors(model, range(12))
    spared = slnp_factors(model, range(12), norms="pre_and_final")
    post = [name for name in every if name.endswith(("post_self_attn_layernorm", "post_mlp_layernorm"))]
    assert len(post) == 8
    assert {spared[name] for name in post} == {1.0}
    assert all(spared[name] == every[name] for name in every if name not in post)
    assert min(every.values()) > 1


@torch.no_grad()
def test_clap_folds_the_post_norm_gain_into_output_rows():
    layers = sandwich_model().model.layers
    donor, before = layers[2], layers[2].self_attn.o_proj.weight.clone()
    clap.merge_groups(layers, 1, [(1, 0), (1, 1), (2, 2)])
    moved = layers[1].post_self_attn_layernorm.weight[:, None] * layers[1].self_attn.o_proj.weight[:, 32:]
    want = donor.post_self_attn_layernorm.weight[:, None] * before[:, 32:]
    torch.testing.assert_close(moved, want, rtol=1e-14, atol=0)


@pytest.mark.parametrize("axis", ["hidden", "layers"])
def test_pruned_sandwich_reloads(tmp_path, axis):
    from transformers import AutoModelForCausalLM

    model = sandwich_model()
    if axis == "hidden":
        surgery.keep_hidden(model, range(18))
    else:
        surgery.keep_layers(model, [0, 3])
    surgery.refresh_config(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert_same_logits(loaded, model)
