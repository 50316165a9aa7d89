"""The share of a model that a method reaches, with experts counted one by one."""

import warnings

import pytest
from tiny_llm import TINY_LLAMA, tiny_module

from pangu_modules import CausalLM, LoRAConfig
from pangu_modules.llm.models.coverage import coverage

MIXTRAL = {"vocab_size": 128, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2}
MIXTRAL |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2}


def test_matrices_and_parameters_are_counted():
    model = tiny_module().model
    layers = TINY_LLAMA["num_hidden_layers"]
    reached = [f"model.layers.{index}.self_attn.q_proj" for index in range(layers)]
    found = coverage(model, reached)
    assert (found.matrices, found.all_matrices) == (layers, 7 * layers)
    assert found.parameters == sum(model.get_submodule(name).weight.numel() for name in reached)
    assert found.all_parameters == sum(parameter.numel() for parameter in model.parameters())


def test_adapters_that_leave_experts_out_say_so():
    # 4 attention projections of 4 + 2 x 4 experts and a router in each layer
    lora = LoRAConfig(targets=("q_proj", "k_proj", "v_proj", "o_proj"))
    config = CausalLM.Config(architecture="mixtral", model_args=MIXTRAL, lora=lora)
    with pytest.warns(UserWarning, match=r"adapters reach 8 of 26 weight matrices of the layers, 17\.2 % of all"):
        config.build()


def test_adapters_on_every_layer_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_module(lora=LoRAConfig())
