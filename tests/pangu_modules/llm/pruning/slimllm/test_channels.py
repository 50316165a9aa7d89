"""The FFN's pruning from its smaller part equals masking the removed channels and fitting every output dimension."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from pangu_modules.llm.calibration.stream import catch_stream
from pangu_modules.llm.pruning.slimllm.channels import prune_channels
from pangu_modules.llm.pruning.slimllm.config import SlimLLMConfig
from pangu_modules.llm.pruning.slimllm.visit import LayerVisit

MASK = torch.tensor([[1] * 16, [1] * 9 + [0] * 7])


def batches():
    ids = torch.randint(3, 61, (5, 16), generator=torch.Generator().manual_seed(3))
    return [{"input_ids": ids[:3]}, {"input_ids": ids[3:] * MASK, "attention_mask": MASK}]


def before_the_ffn(model):
    """Return a copy of layer 0 and the stream behind its attention."""
    layer = copy.deepcopy(model).model.layers[0]
    stream = catch_stream(model, batches())
    stream.pass_attention(layer, 0)
    return layer, stream


def tokens_of(stream):
    return torch.cat([stream.tokens(index, values) for index, values in enumerate(stream.hidden)])


@torch.no_grad()
def outcome(model, num_keep, recovery):
    """Prune layer 0's FFN; return the kept channels, `down_proj` and the real tokens behind the layer."""
    layer, stream = before_the_ffn(model)
    config = SlimLLMConfig(ffn_criterion="feature_space", keep_least_share=0.05, ridge=1e-6, recovery=recovery)
    kept = prune_channels(LayerVisit(layer, 0, stream), config, num_keep)
    return kept, layer.mlp.down_proj, tokens_of(stream)


@torch.no_grad()
def reference(model, kept, recovery):
    """Return weight and bias of `down_proj`, and the tokens behind the layer, from whole passes with a mask."""
    layer, stream = before_the_ffn(model)
    hidden = tokens_of(stream)
    normed, down = layer.post_attention_layernorm(hidden), layer.mlp.down_proj
    whole = layer.mlp(normed).numpy()
    mask = torch.zeros(down.in_features, dtype=torch.bool)
    mask[kept] = True
    down.weight.masked_fill_(~mask, 0)
    pruned = layer.mlp(normed).numpy()
    if recovery == "none":
        slope, intercept = np.ones(whole.shape[1]), np.zeros(whole.shape[1])
    elif recovery == "bias":
        slope, intercept = np.ones(whole.shape[1]), (whole - pruned).mean(0)
    else:
        slope, intercept = np.array([np.polyfit(u, y, 1) for u, y in zip(pruned.T, whole.T, strict=True)]).T
    bias = 0 if down.bias is None else down.bias.numpy()
    return slope[:, None] * down.weight[:, kept].numpy(), slope * bias + intercept, hidden + slope * pruned + intercept


@pytest.mark.parametrize("num_keep", [5, 21])  # the kept channels are the smaller part, or the removed ones
@pytest.mark.parametrize("recovery", ["none", "bias", "affine"])
@pytest.mark.parametrize("family", ["llama", "llama_bias"])
def test_it_equals_masking_and_fitting_every_dimension(tiny_model, family, recovery, num_keep):
    model = tiny_model(family)
    kept, down, hidden = outcome(model, num_keep, recovery)
    assert len(kept) == num_keep
    weight, bias, want = reference(model, kept, recovery)
    # measured below 1e-14: polyfit, and a kept part that is a difference
    np.testing.assert_allclose(down.weight.detach().numpy(), weight, rtol=0, atol=1e-13)
    np.testing.assert_allclose(0 if down.bias is None else down.bias.detach().numpy(), bias, rtol=0, atol=1e-13)
    np.testing.assert_allclose(hidden.numpy(), want, rtol=0, atol=1e-13)


def test_full_ridge_is_least_squares_over_the_kept_channels(tiny_model):
    model = tiny_model("llama_bias")
    kept, down, _ = outcome(model, 21, "full_ridge")
    with torch.no_grad():
        layer, stream = before_the_ffn(model)
        normed, mlp = layer.post_attention_layernorm(tokens_of(stream)), layer.mlp
        z = (mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed)).numpy()
        target = z @ mlp.down_proj.weight.numpy().T
    z = z[:, kept]
    strength = 1e-6 * (z**2).mean()  # mu times the mean diagonal of the second moment
    rows, zeros = np.sqrt(strength * len(z)) * np.eye(len(kept)), np.zeros((len(kept), target.shape[1]))
    want = np.linalg.lstsq(np.vstack([z, rows]), np.vstack([target, zeros]), rcond=None)[0].T
    np.testing.assert_allclose(down.weight.detach().numpy(), want, rtol=0, atol=1e-13)  # measured 4e-15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_rounds_the_same_repair(tiny_model, dtype):
    model = tiny_model("llama").to(dtype)
    kept, down, _ = outcome(model.to(dtype), 21, "affine")
    weight, bias, _ = reference(model.double(), kept, "affine")
    for got, want in ((down.weight, weight), (down.bias, bias)):
        error = np.abs(got.detach().double().numpy() - want).max()
        assert error <= 4 * torch.finfo(dtype).eps * np.abs(want).max()
