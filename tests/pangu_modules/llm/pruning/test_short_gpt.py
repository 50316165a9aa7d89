"""ShortGPT: block influence from whole forward passes, and the layers that go."""

from __future__ import annotations

import copy

import pytest
import torch

from pangu_modules.llm.pruning.short_gpt import ShortGPTConfig, drop_layers

IDS = torch.randint(1, 61, (3, 12), generator=torch.Generator().manual_seed(8))


def block_influence(model):
    """1 - mean cosine between the input and output of every layer, one token at a time."""
    seen = []
    handles = [
        layer.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(IDS)
    for handle in handles:
        handle.remove()
    influences = []
    for before, after in seen:
        cosines = [
            float(a @ b / a.norm() / b.norm()) for a, b in zip(before.flatten(0, 1), after.flatten(0, 1), strict=True)
        ]
        influences.append(1 - sum(cosines) / len(cosines))
    return influences


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_layers_of_lowest_influence_go(tiny_model, family):
    model = tiny_model(family, tied=True)
    influences = block_influence(model)
    order = sorted(range(4), key=lambda index: influences[index])
    reference = copy.deepcopy(model)
    for index in order[:2]:
        reference.model.layers[index].self_attn.o_proj.weight.data.zero_()
        reference.model.layers[index].mlp.down_proj.weight.data.zero_()
    report = drop_layers(model, ShortGPTConfig(dropped_layers=2), [{"input_ids": IDS}])
    assert report.kept_layers == tuple(sorted(order[2:]))
    for entry in report.layers:
        assert 1 - entry.similarity == pytest.approx(influences[entry.index], abs=1e-12)  # measured 1e-16
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, reference(IDS).logits, rtol=0, atol=1e-12)
    assert report.parameters_after == sum(parameter.numel() for parameter in model.parameters())


def test_dropping_everything_is_refused(tiny_model):
    with pytest.raises(ValueError, match="dropped_layers=4 leaves none of 4 layers"):
        drop_layers(tiny_model("llama"), ShortGPTConfig(dropped_layers=4), [{"input_ids": IDS}])
