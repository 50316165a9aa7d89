"""CLAP: which groups move, and that a merged attention is the sum of its groups' own attentions."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pangu_modules.llm.models.decoder import layer_shape
from pangu_modules.llm.pruning.pangu_light.clap import assign_groups, merge_groups
from pangu_modules.llm.pruning.surgery import keep_channels, keep_query_heads

HEAD_DIM, PER_GROUP = 8, 2  # of the tiny models in conftest.py


def test_groups_of_a_dropped_layer_compete_with_the_layer_below():
    scores = torch.tensor([[5.0, 4.0, 3.0], [1.0, 6.0, 2.0], [9.0, 0.0, 9.0], [7.0, 8.0, 9.0]])
    assert assign_groups(scores, [2], 3) == {
        0: [(0, 0), (0, 1), (0, 2)],
        1: [(1, 1), (2, 0), (2, 2)],
        3: [(3, 0), (3, 1), (3, 2)],
    }
    assert assign_groups(scores, [2], 2)[1] == [(2, 0), (2, 2)]
    assert assign_groups(scores, [2], 2, adopt=False) == {0: [(0, 0), (0, 1)], 1: [(1, 1), (1, 2)], 3: [(3, 1), (3, 2)]}


def test_consecutive_layers_fall_to_the_nearest_kept_layer():
    scores = torch.tensor([[3.0, 3.0], [5.0, 1.0], [1.0, 9.0], [9.0, 9.0]])
    assert assign_groups(scores, [1, 2], 2)[0] == [(2, 1), (1, 0)]  # the deepest first
    assert assign_groups(scores, [0, 1], 2)[2] == [(2, 1), (1, 0)]  # nothing below: the next kept layer


def test_ties_go_to_the_receiver():
    assert assign_groups(torch.ones(3, 2), [1], 2) == {0: [(0, 0), (0, 1)], 2: [(2, 0), (2, 1)]}


@given(st.data())
def test_adopted_groups_equal_taking_one_dropped_layer_at_a_time(data):
    """Pooling all dropped layers at once gives what adding one after the other, keeping K' each time, gives."""
    layers, groups = 5, 3
    cells = st.lists(st.integers(0, 99), min_size=layers * groups, max_size=layers * groups, unique=True)
    scores = torch.tensor(data.draw(cells), dtype=torch.float64).view(layers, groups)
    dropped = sorted(data.draw(st.sets(st.integers(1, layers - 1), max_size=layers - 1)))
    budget = data.draw(st.integers(1, groups))
    for layer, got in assign_groups(scores, dropped, budget).items():
        current = {(layer, group) for group in range(groups)}
        above = layer + 1
        while above in dropped:
            above += 1
        for donor in reversed(range(layer + 1, above)):
            pool = current | {(donor, group) for group in range(groups)}
            current = set(sorted(pool, key=lambda cell: -float(scores[cell]))[:budget])
        current = set(sorted(current, key=lambda cell: -float(scores[cell]))[:budget])
        assert set(got) == current
        own = [group for donor, group in got if donor == layer]
        assert got[: len(own)] == [(layer, group) for group in sorted(own)]


def test_a_budget_beyond_the_pool_is_refused():
    with pytest.raises(ValueError, match="layer 0 has a pool of 4 KV groups, 5 are asked for"):
        assign_groups(torch.ones(2, 2), [1], 5)
    with pytest.raises(ValueError, match="every layer is dropped"):
        assign_groups(torch.ones(2, 2), [0, 1], 1)


def attention_of_groups(model, layer, groups, stream):
    """Return the attention output of some groups of one layer for the residual stream, the others masked to zero."""
    layer = copy.deepcopy(layer)
    width = PER_GROUP * HEAD_DIM
    for group in set(range(3)) - set(groups):
        layer.self_attn.o_proj.weight.data[:, group * width : (group + 1) * width] = 0
    return attention(model, layer, stream)


@torch.no_grad()
def attention(model, layer, stream):
    positions = torch.arange(stream.shape[1])[None]
    embeddings = model.model.rotary_emb(stream, positions)
    output, _ = layer.self_attn(layer.input_layernorm(stream), position_embeddings=embeddings, attention_mask=None)
    return output


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize("groups", [[(1, 0), (2, 1), (2, 2)], [(2, 1), (3, 0)], [(1, 2), (2, 0)], [(2, 2)]])
def test_merged_attention_is_the_sum_of_its_groups_behind_their_own_norms(tiny_model, family, groups):
    model = tiny_model(family, use_sliding_window=False) if family == "qwen2" else tiny_model(family)
    layers = model.model.layers
    stream = torch.randn(2, 7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    want = sum(
        attention_of_groups(model, layers[donor], [g for d, g in groups if d == donor], stream)
        for donor in {donor for donor, _ in groups}
    )
    donors = copy.deepcopy(layers)
    merge_groups(layers, 1, groups)
    assert layer_shape(layers[1]).num_kv_heads == len(groups)
    # 3e-16 measured on outputs of size 0.1: the norms' float32 part is the same on both sides
    torch.testing.assert_close(attention(model, layers[1], stream), want, rtol=0, atol=1e-12)
    for index in (0, 2, 3):
        assert all(
            torch.equal(p, q) for p, q in zip(layers[index].parameters(), donors[index].parameters(), strict=True)
        )
    assert torch.equal(layers[1].mlp.up_proj.weight, donors[1].mlp.up_proj.weight)


def test_without_folding_weights_are_copied(tiny_model):
    layers = tiny_model("llama").model.layers
    merge_groups(layers, 1, [(1, 1), (2, 0), (2, 2)], fold_gain=False)
    ours, donor = layers[1].self_attn, layers[2].self_attn
    assert torch.equal(ours.k_proj.weight[8:16], donor.k_proj.weight[:8])
    assert torch.equal(ours.v_proj.weight[16:], donor.v_proj.weight[16:])
    assert torch.equal(ours.q_proj.weight[32:], donor.q_proj.weight[32:])
    assert torch.equal(ours.o_proj.weight[:, 16:32], donor.o_proj.weight[:, :16])


def test_columns_of_vanishing_receiver_gains_are_not_divided(tiny_model):
    layers = tiny_model("llama").model.layers
    layers[1].input_layernorm.weight.data[4] = 1e-9
    merge_groups(layers, 1, [(2, 0), (2, 1), (2, 2)])
    assert torch.equal(layers[1].self_attn.q_proj.weight[:, 4], layers[2].self_attn.q_proj.weight[:, 4])
    assert not torch.equal(layers[1].self_attn.q_proj.weight[:, 5], layers[2].self_attn.q_proj.weight[:, 5])


def test_a_receiver_that_keeps_its_groups_is_bit_identical(tiny_model):
    layers = tiny_model("llama").model.layers
    before = [parameter.clone() for parameter in layers[1].parameters()]
    merge_groups(layers, 1, [(1, 0), (1, 1), (1, 2)])
    assert all(torch.equal(p, q) for p, q in zip(layers[1].parameters(), before, strict=True))


def test_groups_that_do_not_fit_are_refused(tiny_model):
    layers = tiny_model("llama").model.layers
    with pytest.raises(ValueError, match="layer 1 has 3 KV groups and cannot hold 4"):
        merge_groups(layers, 1, [(1, 0), (1, 1), (1, 2), (2, 0)])
    keep_channels(layers[2], range(9))  # of no concern to the attention
    merge_groups(layers, 1, [(1, 0), (2, 1), (2, 2)])
    keep_query_heads(layers[2], [0, 2, 4])
    with pytest.raises(ValueError, match="layer 2 has groups of another shape than layer 1"):
        merge_groups(layers, 1, [(1, 0), (2, 1), (2, 2)])
