"""Surgery against a model whose removed parts are masked to zero, in float64, for every supported architecture."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

from pangu_modules.llm.models import decoder
from pangu_modules.llm.pruning import surgery

HEADS, GROUPS, HEAD_DIM, CHANNELS, LAYERS = 6, 3, 8, 28, 4  # of the tiny models in conftest.py


FAMILIES = ["llama", "llama_bias", "qwen2", "qwen3", "mistral"]
TOKENS = torch.randint(1, 61, (2, 11), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits_of(model):
    return model(TOKENS).logits


def generated(model, use_cache: bool):
    return model.generate(TOKENS, max_new_tokens=9, do_sample=False, use_cache=use_cache, pad_token_id=0)


def assert_same_function(pruned, reference):
    # measured: 1e-15 relative to logits of size 1, from summing fewer terms
    torch.testing.assert_close(logits_of(pruned), logits_of(reference), rtol=0, atol=1e-12)
    without_cache = generated(pruned, use_cache=False)
    assert torch.equal(generated(pruned, use_cache=True), without_cache)
    assert torch.equal(without_cache, generated(reference, use_cache=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_removing_query_heads_equals_masking_their_output_columns(tiny_model, family):
    model = tiny_model(family)
    reference = copy.deepcopy(model)
    kept = [1, 2, 5]  # one of each group of two
    for layer in decoder.decoder_layers(reference):
        for head in set(range(HEADS)) - set(kept):
            layer.self_attn.o_proj.weight.data[:, head * HEAD_DIM : (head + 1) * HEAD_DIM] = 0
    for layer in decoder.decoder_layers(model):
        surgery.keep_query_heads(layer, kept)
    surgery.refresh_config(model)
    assert decoder.layer_shape(model.model.layers[0]) == decoder.LayerShape(3, 3, HEAD_DIM, CHANNELS)
    assert model.config.num_attention_heads == 3
    assert_same_function(model, reference)


@pytest.mark.parametrize("family", FAMILIES)
def test_removing_kv_groups_of_one_layer_equals_masking(tiny_model, family):
    model = tiny_model(family)
    reference = copy.deepcopy(model)
    width = HEADS // GROUPS * HEAD_DIM
    reference.model.layers[1].self_attn.o_proj.weight.data[:, width : 2 * width] = 0
    surgery.keep_kv_groups(model.model.layers[1], [0, 2])
    surgery.refresh_config(model)
    assert decoder.layer_shape(model.model.layers[1]) == decoder.LayerShape(4, 2, HEAD_DIM, CHANNELS)
    assert [shape["num_kv_heads"] for shape in model.config.layer_shapes] == [3, 2, 3, 3]
    assert_same_function(model, reference)


@pytest.mark.parametrize("family", FAMILIES)
def test_removing_channels_equals_masking(tiny_model, family):
    model = tiny_model(family)
    reference = copy.deepcopy(model)
    kept = [0, 3, 4, 9, 20, 27]
    removed = sorted(set(range(CHANNELS)) - set(kept))
    for layer in decoder.decoder_layers(reference):
        layer.mlp.down_proj.weight.data[:, removed] = 0
    for layer in decoder.decoder_layers(model):
        surgery.keep_channels(layer, kept)
    surgery.refresh_config(model)
    assert model.config.intermediate_size == len(kept)
    assert not hasattr(model.config, "layer_shapes")
    assert_same_function(model, reference)


class MaskedNorm(nn.Module):
    """RMS norm over the unmasked channels only; masked channels leave as zero."""

    def __init__(self, norm, mask):
        super().__init__()
        self.weight, self.eps, self.mask = norm.weight, norm.variance_epsilon, mask

    def forward(self, x):
        x = x.float() * self.mask  # the transformers norm computes its RMS in float32
        scale = torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / self.mask.sum() + self.eps)
        return self.weight * (x * scale).double()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_removing_hidden_channels_equals_masking_the_stream(tiny_model, family, tied):
    model = tiny_model(family, tied=tied)
    width = model.config.hidden_size
    kept = [index for index in range(width) if index not in (0, 3, 4, 11)]
    reference = copy.deepcopy(model)
    mask = torch.zeros(width).double()
    mask[kept] = 1
    reference.model.norm = MaskedNorm(reference.model.norm, mask)
    for layer in decoder.decoder_layers(reference):
        layer.input_layernorm = MaskedNorm(layer.input_layernorm, mask)
        layer.post_attention_layernorm = MaskedNorm(layer.post_attention_layernorm, mask)
    surgery.keep_hidden(model, kept)
    surgery.refresh_config(model)
    assert model.config.hidden_size == len(kept)
    assert model.config.head_dim == HEAD_DIM
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    # measured 2e-7: both norms sum their squares in float32, in another order
    torch.testing.assert_close(logits_of(model), logits_of(reference), rtol=0, atol=5e-6)
    assert torch.equal(generated(model, use_cache=True), generated(reference, use_cache=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_removing_layers_equals_layers_that_add_nothing(tiny_model, family):
    model = tiny_model(family)
    reference = copy.deepcopy(model)
    for index in (0, 2):
        layer = reference.model.layers[index]
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight.data.zero_()
            if linear.bias is not None:
                linear.bias.data.zero_()
    surgery.keep_layers(model, [1, 3])
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]
    assert model.config.num_hidden_layers == 2
    assert_same_function(model, reference)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_removals_together_agree_with_themselves_through_the_cache(tiny_model, family):
    model = tiny_model(family, tied=True)
    surgery.keep_layers(model, [0, 1, 3])
    surgery.keep_kv_groups(model.model.layers[0], [1])
    surgery.keep_query_heads(model.model.layers[1], [0, 3, 4])
    surgery.keep_channels(model.model.layers[2], range(5))
    surgery.keep_hidden(model, range(12))
    surgery.add_output_biases(model.model.layers[1])
    surgery.refresh_config(model)
    assert torch.equal(generated(model, use_cache=True), generated(model, use_cache=False))
    own = family == "llama_bias"
    assert [shape["mlp_output_bias"] for shape in model.config.layer_shapes] == [own, True, own]


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_is_bit_identical(tiny_model, family):
    model = tiny_model(family)
    before = logits_of(model)
    surgery.keep_layers(model, range(LAYERS))
    for layer in decoder.decoder_layers(model):
        surgery.keep_query_heads(layer, range(HEADS))
        surgery.keep_kv_groups(layer, range(GROUPS))
        surgery.keep_channels(layer, range(CHANNELS))
    surgery.keep_hidden(model, range(model.config.hidden_size))
    surgery.refresh_config(model)
    assert torch.equal(logits_of(model), before)


def test_query_heads_without_regard_to_groups_are_refused(tiny_model):
    model = tiny_model("llama")
    layer = model.model.layers[0]
    with pytest.raises(ValueError, match=r"\[2, 1, 1\] query heads in the 3 KV groups.*keep_kv_groups"):
        surgery.keep_query_heads(layer, [0, 1, 2, 4])
    # Two whole groups of queries without their KV heads: groups of size 2, 2, 0.
    with pytest.raises(ValueError, match=r"\[2, 2, 0\]"):
        surgery.keep_query_heads(layer, [0, 1, 2, 3])
    assert decoder.layer_shape(layer).num_heads == HEADS


def test_ungrouped_removal_would_be_silent_nonsense(tiny_model):
    """The danger behind the refusal: three of six heads, all sizes valid, no error from transformers, other logits."""
    model = tiny_model("llama")
    reference = copy.deepcopy(model)
    kept = [0, 1, 2]
    for layer in decoder.decoder_layers(reference):
        layer.self_attn.o_proj.weight.data[:, 3 * HEAD_DIM :] = 0
    for layer in decoder.decoder_layers(model):
        rows = torch.arange(3 * HEAD_DIM)
        surgery._slice_linear(layer.self_attn.q_proj, rows=rows)
        surgery._slice_linear(layer.self_attn.o_proj, columns=rows)
        surgery._refresh_attention(layer.self_attn, len(kept), GROUPS)
    assert (logits_of(model) - logits_of(reference)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: surgery.keep_channels(m.model.layers[0], []), "keep at least one of the 28 FFN channels"),
        (lambda m: surgery.keep_channels(m.model.layers[0], [28]), "numbered 0 to 27, got 28"),
        (lambda m: surgery.keep_kv_groups(m.model.layers[0], [1, 1]), "KV groups to keep are named twice: [1]"),
        (lambda m: surgery.keep_layers(m, []), "keep at least one of the 4 layers"),
        (lambda m: surgery.keep_hidden(m, [-1, 2]), "numbered 0 to 23, got -1"),
    ],
)
def test_bad_indices_are_named(tiny_model, call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(tiny_model("llama"))


def test_frozen_parameters_stay_frozen_and_dtype_stays(tiny_model):
    model = tiny_model("llama").to(torch.bfloat16).requires_grad_(False)
    surgery.keep_hidden(model, range(10))
    surgery.add_output_biases(model.model.layers[0])
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
