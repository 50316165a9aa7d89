"""Every criterion against its formula, one channel or head at a time."""

from __future__ import annotations

import copy
from typing import get_args

import numpy as np
import pytest
import torch

from pangu_modules.llm.calibration.statistics import ColumnMoments, StreamingCovariance
from pangu_modules.llm.models import decoder
from pangu_modules.llm.pruning.slimllm.channels import select_channels
from pangu_modules.llm.pruning.slimllm.criteria import (
    ChannelCriterion,
    ChannelStatistics,
    HeadCriterion,
    HeadStatistics,
    channel_scores,
    head_scores,
    unit_scores,
)
from pangu_modules.llm.pruning.slimllm.taylor import taylor_scores

CPU = torch.device("cpu")
GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(40, 24, generator=GENERATOR, dtype=torch.float64) + 0.3
HEADS_Z = torch.randn(40, 48, generator=GENERATOR, dtype=torch.float64) + 0.2


@pytest.fixture
def layer(tiny_model):
    return tiny_model("llama").model.layers[1].requires_grad_(False)


def channel_case(mlp):
    z = mlp.act_fn(mlp.gate_proj(X)) * mlp.up_proj(X)
    y = mlp.down_proj(z)
    statistics = ChannelStatistics(
        ColumnMoments(24, CPU), ColumnMoments(28, CPU), StreamingCovariance(24, CPU), torch.arange(28) - 9.0
    )
    statistics.generator = torch.Generator().manual_seed(1)
    statistics.inputs.update(X)
    statistics.activations.update(z)
    assert statistics.outputs is not None
    statistics.outputs.update(y)
    return statistics, z.numpy(), y.numpy()


def expected_channel_score(criterion, mlp, z, y, j):
    """The formula for channel j, in numpy."""
    x = X.numpy()
    gate, up, down = (linear.weight.numpy() for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    column_norm = np.array([np.sqrt((x[:, c] ** 2).sum()) for c in range(24)])
    terms = np.linalg.norm(gate[j] * column_norm) + np.linalg.norm(up[j] * column_norm)
    z_norm = np.linalg.norm(z[:, j])
    if criterion == "feature_space":
        centred = y - y.mean(0)
        values, vectors = np.linalg.eigh(centred.T @ centred)
        weights = [1 / (1 + np.exp(-abs(v) / np.abs(values).mean())) for v in values]
        coordinates = [abs(down[:, j] @ vectors[:, k]) * weights[k] for k in range(24)]
        return terms + z_norm * np.linalg.norm(coordinates)
    return {
        "three_term": terms + z_norm * np.linalg.norm(down[:, j]),
        "wanda_down": z_norm * np.linalg.norm(down[:, j]),
        "magnitude": np.linalg.norm([*gate[j], *up[j], *down[:, j]]),
        "activation": np.abs(z[:, j]).mean(),
        "fluctuation": z[:, j].var() * (down[:, j] ** 2).sum(),
        "taylor": abs(j - 9.0),
    }[criterion]


@pytest.mark.parametrize("criterion", [name for name in get_args(ChannelCriterion) if name != "random"])
def test_channel_scores_equal_their_formula(layer, criterion):
    statistics, z, y = channel_case(layer.mlp)
    want = [expected_channel_score(criterion, layer.mlp, z, y, j) for j in range(28)]
    got = channel_scores(criterion, layer.mlp, statistics)
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_the_feature_space_weights_lie_between_one_half_and_one(layer):
    """So the eigenbasis changes the output term by less than a factor 2: small effects are to be expected."""
    statistics, _, _ = channel_case(layer.mlp)
    full, plain = (channel_scores(name, layer.mlp, statistics) for name in ("feature_space", "three_term"))
    term = channel_scores("wanda_down", layer.mlp, statistics)
    ratio = (term + full - plain) / term
    assert bool(((ratio >= 0.5) & (ratio < 1)).all())


def head_case(attention):
    shape = decoder.LayerShape(6, 3, 8, 28)
    norms = HEADS_Z.unflatten(1, (6, 8)).norm(dim=2).sum(0)
    statistics = HeadStatistics(shape, StreamingCovariance(48, CPU), norms, torch.arange(6) - 2.5)
    statistics.generator = torch.Generator().manual_seed(1)
    statistics.inputs.update(HEADS_Z)
    return statistics


def expected_head_score(criterion, attention, head):
    z, width = HEADS_Z.numpy(), slice(head * 8, head * 8 + 8)
    group = slice(head // 2 * 8, head // 2 * 8 + 8)
    query, key, value, output = (getattr(attention, f"{name}_proj").weight.numpy() for name in ("q", "k", "v", "o"))
    columns = range(head * 8, head * 8 + 8)
    weights = [query[width], key[group], value[group], output[:, width]]
    return {
        "wanda_output": sum(np.linalg.norm(z[:, c]) * np.linalg.norm(output[:, c]) for c in columns),
        "magnitude": np.sqrt(sum((weight**2).sum() for weight in weights)),
        "activation": np.mean([np.linalg.norm(token) for token in z[:, width]]),
        "fluctuation": sum(z[:, c].var() * (output[:, c] ** 2).sum() for c in columns),
        "taylor": head - 2.5,
    }[criterion]


@pytest.mark.parametrize("criterion", [name for name in get_args(HeadCriterion) if name not in ("random", "pearson")])
def test_head_scores_equal_their_formula(layer, criterion):
    want = [expected_head_score(criterion, layer.self_attn, head) for head in range(6)]
    got = head_scores(criterion, layer.self_attn, head_case(layer.self_attn))
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_a_group_scores_the_absolute_mean_of_its_heads():
    assert unit_scores(torch.tensor([1.0, 3.0, -2.0, -4.0]), 2).tolist() == [2, 3]
    assert unit_scores(torch.tensor([1.0, -3.0]), 2).tolist() == [1, 3]


def test_random_scores_follow_the_generator(layer):
    draws = [channel_scores("random", layer.mlp, channel_case(layer.mlp)[0]) for _ in range(2)]
    assert torch.equal(*draws)
    assert len(draws[0].unique()) == 28
    assert len(head_scores("random", layer.self_attn, head_case(layer.self_attn)).unique()) == 6


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_taylor_scores_are_the_slope_of_the_loss_when_a_structure_is_scaled(tiny_model, family):
    """sum w dL/dw is d/ds of the loss with the structure's weights times s; here by central differences."""
    model = tiny_model(family)
    model.model.layers[0].requires_grad_(False)
    ids = torch.randint(1, 61, (2, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    scores = taylor_scores(model, [{"input_ids": ids, "attention_mask": mask}])
    assert not any(parameter.requires_grad for parameter in model.model.layers[0].parameters())
    assert all(parameter.grad is None for parameter in model.parameters())

    def loss_with(scale, change):
        scaled = copy.deepcopy(model)
        change(scaled.model.layers[2], scale)
        with torch.no_grad():
            logits = scaled(input_ids=ids, attention_mask=mask).logits
        total = 0.0
        for row in range(2):
            for t in range(6):
                if mask[row, t + 1]:
                    total -= float(torch.log_softmax(logits[row, t], -1)[ids[row, t + 1]])
        return total

    def scale_channel(layer, scale):
        layer.mlp.gate_proj.weight.data[3] *= scale
        layer.mlp.up_proj.weight.data[3] *= scale
        layer.mlp.down_proj.weight.data[:, 3] *= scale

    def scale_head_pair(layer, scale):  # group 1: query heads 2 and 3 with their key and value head
        layer.self_attn.q_proj.weight.data[16:32] *= scale
        layer.self_attn.k_proj.weight.data[8:16] *= scale
        layer.self_attn.v_proj.weight.data[8:16] *= scale
        layer.self_attn.o_proj.weight.data[:, 16:32] *= scale

    step = 1e-3
    for change, got in (
        (scale_channel, scores[2].channels[3]),
        (scale_head_pair, scores[2].heads[2:4].sum()),
    ):
        want = (loss_with(1 + step, change) - loss_with(1 - step, change)) / (2 * step)
        # measured 3e-5: the truncation of the central difference, and logits that pass through float32 in norms
        assert float(got) == pytest.approx(want, rel=2e-3, abs=1e-4)


def test_the_lowest_share_stays():
    scores = torch.tensor([5.0, 1.0, 9.0, 2.0, 7.0, 3.0, 8.0, 4.0, 6.0, 0.0])
    assert select_channels(scores, 6, 0.0) == [0, 2, 4, 6, 7, 8]
    # the lowest, index 9, stays; 1, 3, 5 and 7 go
    assert select_channels(scores, 6, 0.1) == [0, 2, 4, 6, 8, 9]
    assert select_channels(scores, 10, 0.1) == list(range(10))
