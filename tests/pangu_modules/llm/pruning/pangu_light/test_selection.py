"""Choices of channels, heads and groups against brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pangu_modules.llm.pruning.pangu_light.importance import Importance
from pangu_modules.llm.pruning.pangu_light.selection import group_scores, random_scores, select_query_heads, top_k


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.data())
def test_top_k_takes_the_largest_and_the_lower_index_on_ties(values, data):
    k = data.draw(st.integers(1, len(values)))
    want = sorted(sorted(range(len(values)), key=lambda index: (-values[index], index))[:k])
    assert top_k(torch.tensor(values, dtype=torch.float64), k) == want


@pytest.mark.parametrize("k", [0, 4])
def test_top_k_refuses_to_keep_nothing_or_too_much(k):
    with pytest.raises(ValueError, match=f"cannot keep {k} of 3"):
        top_k(torch.ones(3), k)


def test_every_group_keeps_its_best_query_heads():
    scores = torch.tensor([1.0, 9.0, 2.0, 8.0, 7.0, 6.0, 0.1, 0.2, 0.3])
    assert select_query_heads(scores, num_groups=3, per_group=2) == [1, 2, 3, 4, 7, 8]


def test_group_scores_average_the_retained_heads_only():
    scores = torch.tensor([1.0, 9.0, 2.0, 8.0, 7.0, 6.0])
    assert group_scores(scores, [1, 2, 3, 5], num_groups=2).tolist() == [5.5, 7.0]


def test_random_scores_follow_the_seed_and_spare_the_layers():
    real = Importance(torch.rand(5), torch.rand(2, 4), torch.rand(2, 6), torch.rand(2))
    first, again, other = (random_scores(real, seed) for seed in (0, 0, 1))
    assert torch.equal(first.hidden, again.hidden)
    assert torch.equal(first.heads, again.heads)
    assert not torch.equal(first.channels, other.channels)
    assert torch.equal(first.layers, real.layers)
