"""SLNP's factors against their formulas, and where they are exact."""

from __future__ import annotations

import math

import pytest
import torch

from pangu_modules.llm.calibration.probe import hidden_norms
from pangu_modules.llm.pruning.pangu_light.slnp import slnp_factors, slnp_rescale
from pangu_modules.llm.pruning.surgery import keep_hidden

KEPT = [0, 2, 3, 7, 8, 11, 13, 20, 23]
BATCH = {"input_ids": torch.randint(1, 61, (3, 8), generator=torch.Generator().manual_seed(1))}


def test_factors_are_ratios_of_gain_norms(tiny_model):
    model = tiny_model("llama")
    factors = slnp_factors(model, KEPT)
    assert list(factors) == list(hidden_norms(model))
    for name, norm in hidden_norms(model).items():
        gain = norm.weight.tolist()
        want = math.sqrt(sum(g * g for g in gain)) / math.sqrt(sum(gain[k] ** 2 for k in KEPT))
        assert factors[name] == pytest.approx(want, rel=1e-14)
        assert factors[name] >= 1


def test_rescaled_gains_have_their_old_norm(tiny_model):
    model = tiny_model("llama")
    norms = hidden_norms(model)
    before = {name: norm.weight.detach().norm() for name, norm in norms.items()}
    factors = slnp_factors(model, KEPT)
    keep_hidden(model, KEPT)
    slnp_rescale(norms, factors)
    for name, norm in norms.items():
        torch.testing.assert_close(norm.weight.detach().norm(), before[name], rtol=1e-14, atol=0)


@pytest.mark.parametrize("mode", ["slnp", "none", "inverse", "calibrated"])
def test_full_width_leaves_every_factor_exactly_one(tiny_model, mode):
    factors = slnp_factors(tiny_model("llama"), range(24), mode=mode, batches=[BATCH])
    assert set(factors.values()) == {1.0}


def test_inverse_and_none_are_the_controls(tiny_model):
    model = tiny_model("llama")
    slnp, inverse = slnp_factors(model, KEPT), slnp_factors(model, KEPT, mode="inverse")
    assert all(slnp[name] * inverse[name] == pytest.approx(1, rel=1e-14) for name in slnp)
    assert set(slnp_factors(model, KEPT, mode="none").values()) == {1.0}


@pytest.mark.parametrize("padded", [False, True])
def test_calibrated_equals_a_loop_over_tokens(tiny_model, padded):
    model = tiny_model("llama")
    mask = torch.ones(3, 8, dtype=torch.long)
    if padded:
        mask[0, 5:] = 0
    inputs = []
    norm = model.model.layers[1].post_attention_layernorm
    handle = norm.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        model(BATCH["input_ids"], attention_mask=mask)
    handle.remove()
    ratios = []
    for row, position in mask.nonzero().tolist():
        x = inputs[0][row, position].tolist()
        kept = sum(x[k] ** 2 for k in KEPT) / len(KEPT) + norm.variance_epsilon
        ratios.append(math.sqrt(kept / (sum(v * v for v in x) / len(x) + norm.variance_epsilon)))
    batches = [BATCH | {"attention_mask": mask}]
    factors = slnp_factors(model, KEPT, mode="calibrated", batches=batches)
    assert factors["layers.1.post_attention_layernorm"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-12)


def test_calibrated_restores_the_function_where_the_removed_channels_are_silent(tiny_model):
    """If no block writes the removed channels, rms(x[kept]) / rms(x) is the same for all tokens: removal = masking."""
    model = tiny_model("llama", rms_norm_eps=1e-30)
    silent = torch.tensor([channel for channel in range(24) if channel not in KEPT])
    with torch.no_grad():
        model.model.embed_tokens.weight[:, silent] = 0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[silent] = 0
            layer.mlp.down_proj.weight[silent] = 0
        masked = model(BATCH["input_ids"]).logits
    norms = hidden_norms(model)
    factors = slnp_factors(model, KEPT, mode="calibrated", batches=[BATCH])
    assert factors["norm"] == pytest.approx(math.sqrt(24 / 9), rel=1e-12)
    keep_hidden(model, KEPT)
    slnp_rescale(norms, factors)
    with torch.no_grad():
        # the norms of transformers work in float32: 4e-7 measured on logits of size 1
        torch.testing.assert_close(model(BATCH["input_ids"]).logits, masked, rtol=0, atol=5e-6)


def test_norms_with_nothing_left_are_named(tiny_model):
    model = tiny_model("llama")
    model.model.layers[3].input_layernorm.weight.data[KEPT] = 0
    with pytest.raises(ValueError, match=r"layers\.3\.input_layernorm keeps only gains of zero"):
        slnp_factors(model, KEPT)


def test_calibrated_needs_batches(tiny_model):
    with pytest.raises(ValueError, match="slnp='calibrated' needs calibration batches"):
        slnp_factors(tiny_model("llama"), KEPT, mode="calibrated")
