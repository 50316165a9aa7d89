"""The races of pruning: both searches select the same heads, and peers that are absent are named."""

import importlib.util

import torch

from benchmarks.methods.pruning import speed as pruning
from benchmarks.methods.pruning.search import NUM_HEADS, contributions, naive_search
from pangu_modules.llm.calibration.statistics import StreamingCovariance
from pangu_modules.llm.pruning.slimllm.search import UnitGram, remove_units


def test_the_search_over_tokens_selects_the_same_heads():
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        z = torch.randn(200, 4 * NUM_HEADS, generator=generator, dtype=torch.float64)
        weight = torch.randn(7, 4 * NUM_HEADS, generator=generator, dtype=torch.float64)
        covariance = StreamingCovariance(z.shape[1], z.device)
        covariance.update(z)
        gram = UnitGram.of(covariance, weight, NUM_HEADS)
        assert remove_units(gram, 3) == naive_search(contributions(z, weight), 3)


def test_peers_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "Not installed, so not raced: optipfair, ModelOpt, Torch-Pruning." in pruning.benchmark().setup
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert "Not installed" not in pruning.benchmark().setup


def test_masking_leaves_only_the_first_heads_and_channels():
    from tiny_llm import tiny_module

    module = tiny_module()
    pruning.mask_rest(module.model, 2, 10)
    layer = module.model.model.layers[1]
    assert not layer.self_attn.o_proj.weight[:, 16:].any()
    assert layer.self_attn.o_proj.weight[:, :16].all()
    assert not layer.mlp.down_proj.weight[:, 10:].any()
    assert layer.mlp.down_proj.weight[:, :10].all()


def test_the_first_call_of_a_long_measurement_takes_a_part():
    measure = pruning.warmed_by_a_part(lambda batches: float(len(batches)), [{}] * 9)
    assert [measure(), measure(), measure()] == [4, 9, 9]


def test_the_peak_counts_from_when_pruning_begins(monkeypatch):
    from pangu_modules.llm.models.loading import new_causal_lm

    sizes = {"hidden_size": 64, "intermediate_size": 4096, "num_hidden_layers": 24, "vocab_size": 64}
    model = new_causal_lm("llama", sizes | {"num_attention_heads": 4, "num_key_value_heads": 2})
    monkeypatch.setattr(pruning, "smollm2", lambda: model)
    earlier = 2000.0
    block = torch.ones(int(earlier * 1e6 / 4))
    del block
    assert pruning.resident("VmHWM") > earlier
    peak = pruning.peak_megabytes([[list(range(64))] * 4] * 4)
    assert pruning.megabytes(model) <= peak < earlier / 2
