"""Depth criteria and layer merging against slow references."""

from __future__ import annotations

import copy

import pytest
import torch

from pangu_modules.llm.models.perplexity import perplexity
from pangu_modules.llm.pruning.depth import merge_differences, perplexity_scores, select_dropped_layers

BATCH = {"input_ids": torch.randint(1, 61, (3, 8), generator=torch.Generator().manual_seed(1))}


def test_lowest_scores_go_and_ties_go_by_index():
    scores = torch.tensor([0.0, 3.0, 1.0, 1.0, 2.0, 0.0])
    assert select_dropped_layers(scores, 2) == [2, 3]
    assert select_dropped_layers(scores, 1) == [2]
    assert select_dropped_layers(scores, 2, protect=()) == [0, 5]
    assert select_dropped_layers(scores, 0) == []


def test_neighbours_stay_where_asked():
    scores = torch.tensor([9.0, 1.0, 2.0, 3.0, 4.0, 9.0])
    assert select_dropped_layers(scores, 2, allow_adjacent=False) == [1, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_drop": 5}, r"cannot drop 5 of 6 layers: protect_layers=\[0, -1\]"),
        ({"num_drop": 3, "allow_adjacent": False}, "leave only 2 to drop"),
        ({"num_drop": 1, "protect": (6,)}, "the model has layers 0 to 5"),
    ],
)
def test_too_many_layers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        select_dropped_layers(torch.arange(6.0), **options)


def test_perplexity_scores_equal_removing_each_layer(tiny_model):
    from pangu_modules.llm.pruning.surgery import keep_layers

    model = tiny_model("llama")
    dense = perplexity(model, [BATCH])
    want = []
    for layer in range(4):
        shorter = copy.deepcopy(model)
        keep_layers(shorter, [index for index in range(4) if index != layer])
        want.append(perplexity(shorter, [BATCH]) - dense)
    assert perplexity_scores(model, [BATCH]).tolist() == pytest.approx(want, rel=1e-12)
    assert perplexity(model, [BATCH]) == dense


def test_merged_layer_has_the_sum_of_differences(tiny_model):
    layers = tiny_model("llama").model.layers
    before = [{name: value.clone() for name, value in layer.state_dict().items()} for layer in layers]
    merge_differences(layers[0], [layers[1], layers[2]])
    for name, value in layers[0].state_dict().items():
        base, one, two = (state[name] for state in before[:3])
        torch.testing.assert_close(value, base + (one - base) + (two - base), rtol=0, atol=1e-14)
    assert all(torch.equal(value, before[1][name]) for name, value in layers[1].state_dict().items())
