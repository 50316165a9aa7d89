"""Layer shares and counts against hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_modules.llm.models.decoder import LayerShape
from pangu_modules.llm.pruning.slimllm.layer_shares import (
    channels_to_keep,
    head_units_to_remove,
    layer_shares,
    removed_attention_share,
)


def test_the_layers_that_change_their_input_least_are_pruned_by_a_softmax():
    similarities = [0.1, 0.96, 0.94, 0.98, 0.6]
    got = layer_shares(similarities, base_share=0.2, num_pruned=3, alpha=10, max_share=0.9)
    weights = np.exp(10 * np.array([0.96, 0.94, 0.98]))
    want = 0.2 * 3 * weights / weights.sum()
    np.testing.assert_allclose(got, [0, want[0], want[1], want[2], 0], rtol=1e-12)


def test_alpha_zero_is_uniform_and_ties_go_to_the_lower_layer():
    assert layer_shares([0.9, 0.9, 0.9], 0.25, 2, 0, 0.9) == [0.25, 0.25, 0.0]


def test_clipped_ratios_keep_their_mean():
    got = layer_shares([0.99, 0.5, 0.45, 0.1], base_share=0.5, num_pruned=4, alpha=5, max_share=0.8)
    assert max(got) == pytest.approx(0.8)
    assert sum(got) / 4 == pytest.approx(0.5)
    # the layers below the limit keep their proportion
    assert got[1] / got[2] == pytest.approx(np.exp(5 * 0.05))


def test_impossible_ratios_name_the_fields():
    with pytest.raises(ValueError, match="pruned_layers=5, but the model has only 3 layers"):
        layer_shares([0.9] * 3, 0.2, 5, 0, 0.9)
    with pytest.raises(ValueError, match=r"base_share=0.8 exceeds max_layer_share=0.5"):
        layer_shares([0.9] * 3, 0.8, 3, 0, 0.5)


GROUPED = LayerShape(num_heads=9, num_kv_heads=3, head_dim=64, intermediate_size=1536)
PLAIN = LayerShape(num_heads=32, num_kv_heads=32, head_dim=128, intermediate_size=11008)


@pytest.mark.parametrize(
    ("shape", "unit", "share", "want"),
    [
        (GROUPED, "kv_group", 0.2, 1),  # 0.6 groups
        (GROUPED, "kv_group", 0.16, 0),  # 0.48 groups
        (GROUPED, "kv_group", 0.9, 2),  # 2.7 groups, but one stays
        (GROUPED, "query", 0.5, 2),  # 1.5 heads of every group, rounded half up
        (PLAIN, "kv_group", 0.25, 8),
        (PLAIN, "kv_group", 0.55, 18),  # 17.6
    ],
)
def test_head_units_to_remove(shape, unit, share, want):
    assert head_units_to_remove(shape, unit, share) == want


def test_head_units_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match="none of 4 heads, at least 1 must stay"):
        head_units_to_remove(LayerShape(4, 4, 8, 16), "kv_group", 0.9)
    with pytest.raises(ValueError, match="needs grouped-query attention"):
        head_units_to_remove(PLAIN, "query", 0.5)


def test_removed_attention_share_counts_weights():
    assert removed_attention_share(GROUPED, "kv_group", 1) == pytest.approx(1 / 3)
    # 9 query heads in q and o, 3 key and 3 value heads; one query head of each group goes: 3 + 3 of 24 blocks
    assert removed_attention_share(GROUPED, "query", 1) == pytest.approx(6 / 24)


def test_channels_to_keep():
    assert channels_to_keep(1536, 0.25) == 1152
    assert channels_to_keep(1536, 0.2) == 1229
    assert channels_to_keep(1536, 0.2, multiple=64) == 1216
    assert channels_to_keep(1536, 0.99, multiple=64) == 64
    assert channels_to_keep(100, 0.0, multiple=64) == 100
    with pytest.raises(ValueError, match="none of 2 FFN channels, at least 1 must stay"):
        channels_to_keep(2, 0.9)
