"""ModelShape: parameter counts stated by the paper and by model cards, and shapes read from configurations."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pangu_modules.simulator.model_shape import DENSE_32B, DENSE_72B, PANGU_PRO_MOE, shape_of
from pangu_modules.simulator.throughput import PARAMETER_TOLERANCE


def test_parameter_counts() -> None:
    assert PANGU_PRO_MOE.parameters() == 71_988_781_056  # 72B, section 8 of the method's description
    assert PANGU_PRO_MOE.parameters(active=True) == 16_498_139_136
    assert DENSE_72B.parameters() == DENSE_72B.parameters(active=True) == 72_706_203_648  # Qwen2.5-72B's own count
    assert DENSE_32B.parameters() == 32_763_876_352


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("llama", {"intermediate_size": 48, "head_dim": 8}),
        ("mixtral", {"intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 2}),
        (
            "qwen3_moe",
            {
                "intermediate_size": 48,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 16,
                "mlp_only_layers": [1],
            },
        ),
    ],
)
def test_shape_counts_what_transformers_builds(architecture: str, fields: dict[str, Any]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = AutoConfig.for_model(architecture, **sizes, num_key_value_heads=2, tie_word_embeddings=False, **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counted = shape_of(config).parameters()
    norms = ("q_norm.weight", "k_norm.weight")  # of Qwen3's heads: too few weights to be in a shape
    head_norms = sum(weight.numel() for name, weight in model.named_parameters() if name.endswith(norms))
    assert counted + head_norms == sum(parameter.numel() for parameter in model.parameters())


MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("qwen2", {}),
        ("qwen3", {"head_dim": 8}),
        ("gemma2", {"head_dim": 8}),
        ("granite", {}),
        ("olmo2", {}),
        ("qwen2_moe", {"num_experts": 4, "shared_expert_intermediate_size": 16, **MOE}),
        ("glm4_moe", {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, **MOE}),
        ("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
)
def test_models_of_other_methods_are_described_well_enough_to_plan(architecture: str, fields: dict[str, Any]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "intermediate_size": 48}
    config = AutoConfig.for_model(architecture, **sizes, tie_word_embeddings=True, **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert shape_of(config).parameters() == pytest.approx(weights, rel=PARAMETER_TOLERANCE)


def test_of_a_model_for_text_and_images_the_decoder_is_taken() -> None:
    from transformers import Gemma3Config

    text = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8}
    config = Gemma3Config(text_config={**text, "num_key_value_heads": 2, "intermediate_size": 48})
    shape = shape_of(config)
    assert (shape.num_layers, shape.hidden_size, shape.num_kv_heads) == (3, 32, 2)


def test_the_simulator_needs_no_method_and_no_torch() -> None:
    program = (
        "import sys, pangu_modules.simulator.throughput, pangu_modules.simulator.design_search; "
        "print([name for name in sys.modules if name.startswith(('pangu_modules.llm', 'torch', 'transformers'))])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_the_papers_configuration_gives_the_papers_shape() -> None:
    from pangu_modules.llm.moge.configuration import PanguProMoEConfig

    assert shape_of(PanguProMoEConfig(), PANGU_PRO_MOE.name) == PANGU_PRO_MOE
    assert shape_of(PanguProMoEConfig(router="topk", router_scale=False)).num_groups == 1


def test_what_cannot_be_described_is_refused() -> None:
    class Latent:
        kv_lora_rank = 512

    class Empty:
        num_attention_heads = 4

    with pytest.raises(ValueError, match="multi-head latent attention"):
        shape_of(Latent())
    with pytest.raises(ValueError, match="mine: the model's configuration gives no hidden_size"):
        shape_of(Empty(), "mine")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, "num_heads 40 must be divisible by num_kv_heads 3"),
        (
            {"num_groups": 3},
            r"num_experts \(N\) 64 and num_experts_per_tok \(K\) 8 must be divisible by num_groups \(M\) 3",
        ),
        ({"num_experts_per_tok": 72}, "0 < num_experts_per_tok <= num_experts"),
        ({"num_experts": 0}, "intermediate_size must be positive"),
        ({"dense_layers": 1}, "they need intermediate_size > 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PANGU_PRO_MOE.derive(**changes)
