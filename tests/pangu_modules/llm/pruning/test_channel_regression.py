"""The FFN's pruning from its smaller part equals the one that runs the pruned FFN again."""

from __future__ import annotations

import copy

import pytest
import torch

from pangu_modules.llm.pruning.channel_pruning import prune_channels
from pangu_modules.llm.pruning.channel_regression import prune_and_regress_channels
from pangu_modules.llm.pruning.stream import catch_stream

MASK = torch.tensor([[1] * 16, [1] * 9 + [0] * 7])


def batches():
    ids = torch.randint(3, 61, (5, 16), generator=torch.Generator().manual_seed(3))
    return [{"input_ids": ids[:3]}, {"input_ids": ids[3:] * MASK, "attention_mask": MASK}]


def outcome(model, prune, **options):
    """Prune layer 0's FFN; return the kept channels, the layer's tensors and the stream behind it, padding left out."""
    model = copy.deepcopy(model)
    layer = model.model.layers[0]
    with torch.no_grad():
        stream = catch_stream(model, batches())
        stream.pass_attention(layer, 0)
        kept = prune(layer, 0, stream, criterion="feature_space", keep_least_fraction=0.05, **options)
    hidden = {f"hidden {index}": stream.tokens(index, values) for index, values in enumerate(stream.hidden)}
    return kept, dict(layer.state_dict()) | hidden


@pytest.mark.parametrize("num_keep", [5, 21])  # the kept channels are the smaller part, or the removed ones
@pytest.mark.parametrize("recovery", ["none", "bias", "affine"])
@pytest.mark.parametrize("family", ["llama", "llama_bias"])
def test_it_equals_running_the_pruned_ffn(tiny_model, family, recovery, num_keep):
    model = tiny_model(family)
    kept, want = outcome(model, prune_channels, num_keep=num_keep, recovery=recovery, ridge=1.0)
    same, got = outcome(model, prune_and_regress_channels, num_keep=num_keep, recovery=recovery)
    assert same == kept
    assert len(kept) == num_keep
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        # measured 6e-14: the kept part is now a difference
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_rounds_the_same_repair(tiny_model, dtype):
    model = tiny_model("llama").to(dtype)
    exact = outcome(model.double(), prune_channels, num_keep=21, recovery="affine", ridge=1.0)[1]
    got = outcome(model.to(dtype), prune_and_regress_channels, num_keep=21, recovery="affine")[1]
    eps = torch.finfo(dtype).eps
    for name in ("mlp.down_proj.weight", "mlp.down_proj.bias", "hidden 0"):
        scale = float(exact[name].abs().max())
        torch.testing.assert_close(got[name].double(), exact[name], rtol=0, atol=4 * eps * scale, msg=name)
