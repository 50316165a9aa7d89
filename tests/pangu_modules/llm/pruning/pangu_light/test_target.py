"""Target shapes and parameter counts against models on the meta device."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from pangu_modules.llm.pruning.pangu_light.target import (
    ModelShape,
    TargetShape,
    count_parameters,
    resolve_target,
    shape_for_parameters,
    shape_of_config,
    target_parameters,
)

SMOLLM2 = ModelShape(576, 1536, 9, 3, 30)


def smollm2_config():
    from transformers import LlamaConfig

    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    return LlamaConfig(num_hidden_layers=30, vocab_size=49152, head_dim=64, tie_word_embeddings=True, **sizes)


def meta_count(config) -> int:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("target", "parameters"),
    [
        ({}, 134_515_008),
        ({"num_hidden_layers": 26}, 120_354_624),
        ({"num_attention_heads": 6}, 127_879_488),
        ({"hidden_size": 512, "num_hidden_layers": 26}, 106_981_888),
        ({"hidden_size": 448, "num_hidden_layers": 24}, 88_102_336),
    ],
)
def test_published_counts_of_smollm2(target, parameters):
    assert target_parameters(smollm2_config(), TargetShape(**target)) == parameters
    if not target:
        assert meta_count(smollm2_config()) == parameters


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("Llama", {}),
        ("Llama", {"attention_bias": True, "mlp_bias": True}),
        ("Mistral", {}),
        ("Qwen2", {}),
        ("Qwen3", {}),
        ("Qwen3", {"attention_bias": True}),
        ("SandwichLlama", {}),
        ("SandwichLlama", {"attention_bias": True}),
    ],
)
def test_formula_counts_what_transformers_builds(family, options, tied):
    import transformers

    from pangu_modules.llm.models import sandwich

    config_class = getattr(transformers, f"{family}Config", None) or sandwich.SandwichLlamaConfig
    sizes = {"hidden_size": 20, "intermediate_size": 28, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = config_class(vocab_size=61, num_hidden_layers=3, head_dim=6, tie_word_embeddings=tied, **sizes, **options)
    assert count_parameters(config, shape_of_config(config)) == meta_count(config)


def test_a_public_32b_shape_to_a_smaller_one():
    from transformers import Qwen3Config

    sizes = {"hidden_size": 5120, "intermediate_size": 25600, "num_attention_heads": 64, "num_key_value_heads": 8}
    config = Qwen3Config(vocab_size=151936, num_hidden_layers=64, head_dim=128, tie_word_embeddings=False, **sizes)
    assert count_parameters(config, shape_of_config(config)) == meta_count(config) == 32_762_123_264
    target = TargetShape(num_hidden_layers=52, hidden_size=4608, intermediate_size=23040)
    per_layer = 4608 * 128 * (2 * 64 + 2 * 8) + 3 * 4608 * 23040 + 2 * 4608 + 2 * 128
    assert target_parameters(config, target) == 2 * 151936 * 4608 + 52 * per_layer + 4608


def test_a_sandwich_of_pangu_ultras_size_has_about_135_billion_parameters():
    from pangu_modules.llm.models.sandwich import SandwichLlamaConfig

    sizes = {"hidden_size": 12288, "intermediate_size": 28672, "num_attention_heads": 96, "num_key_value_heads": 8}
    config = SandwichLlamaConfig(vocab_size=153_376, num_hidden_layers=94, head_dim=128, **sizes)
    assert 133e9 < count_parameters(config, shape_of_config(config)) < 137e9


def test_unnamed_axes_keep_their_size_and_groups_their_heads():
    assert resolve_target(SMOLLM2, TargetShape()) == SMOLLM2
    assert resolve_target(SMOLLM2, TargetShape(num_key_value_heads=2)) == ModelShape(576, 1536, 6, 2, 30)
    assert resolve_target(SMOLLM2, TargetShape(num_attention_heads=6)) == ModelShape(576, 1536, 6, 3, 30)
    both = TargetShape(num_attention_heads=4, num_key_value_heads=2)
    assert resolve_target(SMOLLM2, both) == ModelShape(576, 1536, 4, 2, 30)


@pytest.mark.parametrize(
    ("target", "round_to", "message"),
    [
        ({"hidden_size": 577}, 1, "target.hidden_size=577 is larger than the model's 576"),
        ({"intermediate_size": 1537}, 1, "target.intermediate_size=1537 is larger"),
        ({"num_attention_heads": 12}, 1, "target.num_attention_heads=12 is larger"),
        ({"num_key_value_heads": 4}, 1, "is larger than the model's"),
        ({"num_hidden_layers": 31}, 1, "target.num_hidden_layers=31 is larger"),
        ({"num_attention_heads": 7}, 1, "target.num_attention_heads=7 is not a multiple of num_key_value_heads=3"),
        ({"num_attention_heads": 8, "num_key_value_heads": 2}, 1, "asks for 4 query heads in each of 2 KV groups"),
        ({"hidden_size": 500}, 128, "is not a multiple of round_to=128: take 384 or 512"),
        ({"intermediate_size": 100}, 128, "target.intermediate_size=100 is not a multiple of round_to=128: take 128"),
    ],
)
def test_targets_that_do_not_fit(target, round_to, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_target(SMOLLM2, TargetShape(**target), round_to=round_to)


@pytest.mark.parametrize("round_to", [1, 64])
@pytest.mark.parametrize("budget", [0.35, 0.6, 0.8, 0.95, 100e6])
def test_a_budget_is_filled_but_not_exceeded(budget, round_to):
    config = smollm2_config()
    shape = shape_for_parameters(config, budget, round_to=round_to)
    allowed = budget if budget > 1 else budget * 134_515_008
    assert count_parameters(config, shape) <= allowed
    for axis, step in (("intermediate_size", round_to), ("num_hidden_layers", 1)):
        larger = replace(shape, **{axis: getattr(shape, axis) + step})
        assert getattr(larger, axis) > getattr(SMOLLM2, axis) or count_parameters(config, larger) > allowed
    assert shape.hidden_size % round_to == 0
    assert shape.intermediate_size % round_to == 0
    assert (shape.num_attention_heads, shape.num_key_value_heads) == (9, 3)
    assert resolve_target(shape_of_config(config), shape.as_target(), round_to=round_to) == shape


def test_budgets_at_and_beyond_the_limits():
    config = smollm2_config()
    assert shape_for_parameters(config, 1.0) == SMOLLM2
    with pytest.raises(ValueError, match=r"target_params=2e\+08 must be between .* and the model's 134515008"):
        shape_for_parameters(config, 2e8)
    with pytest.raises(ValueError, match="must be between the smallest shape's"):
        shape_for_parameters(config, 1000)
