"""Reading a decoder's parts: sizes, names and biases of its layers, and which models are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pangu_modules.llm.models import decoder


def test_shapes_and_biases_are_those_of_the_tensors(tiny_model):
    model = tiny_model("llama_bias")
    assert decoder.backbone(model) is model.model
    assert decoder.hidden_size(model) == 24
    shapes = [decoder.layer_shape(layer) for layer in decoder.decoder_layers(model)]
    assert shapes == [decoder.LayerShape(6, 3, 8, 28)] * 4
    assert decoder.layer_shape(model.model.layers[0]).queries_per_group == 2
    model.model.layers[1].mlp.down_proj.bias = None
    records = decoder.layer_records(model)
    assert [record["mlp_output_bias"] for record in records] == [True, False, True, True]
    assert all(record["attention_output_bias"] for record in records)


def test_projections_are_the_linear_layers_by_name(tiny_model):
    layer = tiny_model("qwen3").model.layers[0]
    projections = decoder.projections(layer)
    assert tuple(name.rpartition(".")[2] for name in projections) == decoder.LINEAR_LAYERS
    assert all(layer.get_submodule(name) is linear for name, linear in projections.items())
    assert len(projections) == sum(isinstance(part, nn.Linear) for part in layer.modules())


def test_unsupported_and_quantised_models_are_named(tiny_model):
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10))
    with pytest.raises(ValueError, match="'gpt2': supported are llama, mistral, qwen2, qwen3"):
        decoder.check_supported(gpt)
    model = tiny_model("llama")
    decoder.check_supported(model)
    linear = model.model.layers[2].mlp.up_proj
    linear.weight = nn.Parameter(linear.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match=r"mlp.up_proj is Linear, a quantised layer: dequantise"):
        decoder.check_supported(model)
