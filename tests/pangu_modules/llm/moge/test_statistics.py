"""Load statistics against loops, the closed forms for uniform routers, and the meter against its parts."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from pangu_modules.llm.moge.routing import route_moge, route_topk
from pangu_modules.llm.moge.statistics import (
    LoadMeter,
    balanced_token_probability,
    coefficient_of_variation,
    dead_experts,
    device_counts,
    imbalance_score,
    max_over_mean,
)


def chosen(tokens: int, seed: int = 0, layers: int = 1, experts: int = 16, k: int = 4) -> torch.Tensor:
    """Skewed top-K choices, (L, T, K)."""
    generator = torch.Generator().manual_seed(seed)
    skew = torch.linspace(0, 1, experts)
    logits = torch.randn(layers, tokens, experts, generator=generator) + skew
    return logits.topk(k, dim=-1).indices


def counts_by_loop(ids: torch.Tensor, experts: int, devices: int) -> list[int]:
    rows = [0] * devices
    for token in ids.tolist():
        for expert in token:
            rows[expert // (experts // devices)] += 1
    return rows


@pytest.mark.parametrize("tokens", [1, 3, 10])
def test_counts_and_scores_equal_loops_over_each_batch(tokens: int) -> None:
    ids = chosen(31, layers=2)
    counts = device_counts(ids, 16, 4, tokens)
    scores = imbalance_score(ids, 16, 4, tokens)
    assert counts.shape == (2, 31 // tokens, 4)
    for layer in range(2):
        for batch in range(31 // tokens):
            rows = counts_by_loop(ids[layer, batch * tokens : (batch + 1) * tokens], 16, 4)
            assert counts[layer, batch].tolist() == rows
            assert float(scores[layer, batch]) == (max(rows) - min(rows)) / tokens


def test_a_grouped_router_is_in_balance_for_every_batch_and_a_plain_one_is_not() -> None:
    logits = torch.randn(500, 64, generator=torch.Generator().manual_seed(0)) + torch.linspace(0, 3, 64)
    moge, plain = route_moge(logits, 8, 8).expert_ids, route_topk(logits, 8).expert_ids
    for devices in (1, 2, 4, 8):
        for tokens in (1, 7, 500):
            assert torch.all(imbalance_score(moge, 64, devices, tokens) == 0)
    assert imbalance_score(plain, 64, 8)[0] > 1


def test_no_token_is_in_balance() -> None:
    ids = torch.empty(2, 0, 4, dtype=torch.int64)
    assert device_counts(ids, 16, 4).sum() == 0
    assert torch.all(imbalance_score(ids, 16, 4) == 0)


def test_load_figures_of_known_counts() -> None:
    counts = torch.tensor([[4, 4, 4, 4], [8, 0, 0, 0], [0, 0, 0, 0]])
    assert max_over_mean(counts).tolist() == [1, 4, 1]
    assert dead_experts(counts).tolist() == [0, 3, 4]
    # standard deviation of (8, 0, 0, 0) is sqrt(12), its mean 2
    assert coefficient_of_variation(counts).tolist() == pytest.approx([0, math.sqrt(3), 0], rel=1e-15)


@pytest.mark.parametrize(("experts", "k", "devices"), [(8, 4, 2), (8, 4, 4), (6, 3, 3), (8, 3, 2), (5, 2, 1)])
def test_probability_of_balance_equals_counting_all_choices(experts: int, k: int, devices: int) -> None:
    found = [counts_by_loop(torch.tensor([ids]), experts, devices) for ids in combinations(range(experts), k)]
    balanced = sum(max(rows) == min(rows) for rows in found)
    assert balanced_token_probability(experts, k, devices) == balanced / len(found)


def test_probabilities_of_the_papers_setting() -> None:
    values = {devices: round(balanced_token_probability(64, 8, devices), 5) for devices in (8, 4, 2)}
    assert values == {8: 0.00379, 4: 0.04685, 2: 0.29215}


@pytest.mark.parametrize("pieces", [(100,), (3, 50, 1, 46), (7,) * 14])
def test_the_meter_adds_up_whatever_the_batches(pieces: tuple[int, ...]) -> None:
    ids = chosen(sum(pieces), layers=3)
    meter = LoadMeter(16, 4, (40, 5, 1000))
    for piece in ids.split(pieces, dim=1):
        meter.update(piece)
    summary = meter.summary()
    expected = torch.stack([layer.flatten().bincount(minlength=16) for layer in ids])
    assert torch.equal(summary.counts, expected)
    assert set(summary.imbalance) == {5, 40}  # there were never 1000 tokens
    for tokens in (5, 40):
        scores = imbalance_score(ids, 16, 4, tokens)
        rows = device_counts(ids, 16, 4, tokens)
        # the sums are in float64, in another order
        torch.testing.assert_close(summary.imbalance[tokens], scores.mean(-1), rtol=1e-12, atol=0)
        ratios = max_over_mean(rows).mean(-1)
        torch.testing.assert_close(summary.device_max_over_mean[tokens], ratios, rtol=1e-12, atol=0)
        assert torch.equal(summary.balanced[tokens], (scores == 0).double().mean(-1))


def test_meters_of_several_ranks_add_up() -> None:
    ids = chosen(80, layers=2)
    meters = [LoadMeter(16, 4, (10,)) for _ in range(3)]
    for meter, part in zip(meters[:2], ids.split(40, dim=1), strict=True):
        meter.update(part)
    meters[2].update(ids[:, :0])  # a rank without tokens
    totals = sum(meter.finish() for meter in meters)  # type: ignore[misc]
    whole = LoadMeter(16, 4, (10,))
    whole.update(ids)
    ours, expected = meters[0].summary(totals), whole.summary()  # type: ignore[arg-type]
    assert torch.equal(ours.counts, expected.counts)
    torch.testing.assert_close(ours.imbalance[10], expected.imbalance[10], rtol=1e-12, atol=0)


def test_scalars_have_the_names_of_the_log() -> None:
    meter = LoadMeter(16, 4, (10,))
    meter.update(torch.zeros(2, 10, 4, dtype=torch.int64) + torch.arange(4))
    assert meter.summary().scalars() == {
        "cv": pytest.approx(math.sqrt(3)),
        "max_over_mean": 4,
        "dead_experts": 24,
        "imbalance_10": 4,
        "device_max_over_mean_10": 4,
    }


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_devices=3 does not divide num_experts=16.*1, 2, 4, 8, 16"):
        LoadMeter(16, 3, (10,))
    with pytest.raises(ValueError, match="token_counts"):
        LoadMeter(16, 4, ())
    with pytest.raises(ValueError, match="no batch yet"):
        LoadMeter(16, 4, (1,)).summary()
