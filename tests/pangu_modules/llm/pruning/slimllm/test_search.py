"""Head similarity and greedy exchange from Gram matrices against the token-wise definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pangu_modules.llm.calibration.statistics import StreamingCovariance
from pangu_modules.llm.pruning.slimllm.search import UnitGram, remove_lowest, remove_units

TOKENS, UNITS, WIDTH, SIZE = 37, 8, 3, 11


def problem(seed: int):
    """Contributions of units that overlap, so that the exchange has something to gain."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(TOKENS, 4, generator=generator, dtype=torch.float64)
    mixing = torch.randn(4, UNITS * WIDTH, generator=generator, dtype=torch.float64)
    inputs = shared @ mixing + 0.7 * torch.randn(TOKENS, UNITS * WIDTH, generator=generator, dtype=torch.float64) + 2
    weight = torch.randn(SIZE, UNITS * WIDTH, generator=generator, dtype=torch.float64)
    return inputs, weight


def gram_of(inputs, weight, units=UNITS):
    statistics = StreamingCovariance(inputs.shape[1], inputs.device)
    for part in inputs.split(10):
        statistics.update(part)
    return UnitGram.of(statistics, weight, units)


def tokenwise_similarity(inputs, weight, kept, units=UNITS):
    """sim(S) from the outputs of every token, one output dimension at a time."""
    width = inputs.shape[1] // units
    parts = [
        (inputs[:, i * width : (i + 1) * width] @ weight[:, i * width : (i + 1) * width].T).numpy()
        for i in range(units)
    ]
    whole, some = sum(parts), sum(parts[i] for i in kept)
    total = 0.0
    for d in range(weight.shape[0]):
        a, b = some[:, d] - some[:, d].mean(), whole[:, d] - whole[:, d].mean()
        scale = np.sqrt((a**2).mean() * (b**2).mean())
        total += abs((a * b).mean()) / scale if scale > 0 else 0.0
    return total


def tokenwise_choice(inputs, weight, num_remove, greedy, units=UNITS, groups=1):
    """The procedure as written: initial removal, then each removed unit tries every kept place of its group."""
    everything = list(range(units))
    without = [tokenwise_similarity(inputs, weight, [j for j in everything if j != i], units) for i in everything]
    order = sorted(everything, key=lambda i: -without[i])
    size = units // groups
    removed = [i for i in order if sum(j // size == i // size for j in order[: order.index(i)]) < num_remove]
    kept = [i for i in everything if i not in removed]
    if greedy:
        best = tokenwise_similarity(inputs, weight, kept, units)
        for newcomer in removed:
            new = kept
            for place in range(len(kept)):
                if kept[place] // size != newcomer // size:
                    continue
                trial = [*kept[:place], newcomer, *kept[place + 1 :]]
                value = tokenwise_similarity(inputs, weight, trial, units)
                if value > best:
                    best, new = value, trial
            kept = new
    return sorted(kept)


@pytest.mark.parametrize("seed", range(3))
def test_similarities_equal_the_tokenwise_ones(seed):
    inputs, weight = problem(seed)
    gram = gram_of(inputs, weight)
    # measured 1e-14: both are float64
    assert gram.similarity([0, 3, 7]) == pytest.approx(tokenwise_similarity(inputs, weight, [0, 3, 7]), abs=1e-12)
    without = [tokenwise_similarity(inputs, weight, [j for j in range(UNITS) if j != i]) for i in range(UNITS)]
    np.testing.assert_allclose(gram.similarities_without_each(), without, rtol=0, atol=1e-12)
    swapped = [tokenwise_similarity(inputs, weight, kept) for kept in ([5, 3, 7], [0, 5, 7], [0, 3, 5])]
    np.testing.assert_allclose(gram.similarities_of_swaps([0, 3, 7], 5), swapped, rtol=0, atol=1e-12)


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("num_remove", [1, 3, 6])
@pytest.mark.parametrize("seed", range(4))
def test_choice_equals_the_tokenwise_procedure(seed, num_remove, greedy):
    inputs, weight = problem(seed)
    got = remove_units(gram_of(inputs, weight), num_remove, greedy=greedy)
    assert got == tokenwise_choice(inputs, weight, num_remove, greedy)


@pytest.mark.parametrize("seed", range(4))
def test_choice_inside_groups_equals_the_tokenwise_procedure(seed):
    inputs, weight = problem(seed)
    got = remove_units(gram_of(inputs, weight), 2, greedy=True, num_groups=2)
    assert got == tokenwise_choice(inputs, weight, 2, greedy=True, groups=2)
    assert sum(unit < UNITS // 2 for unit in got) == UNITS // 2 - 2


def test_greedy_exchange_changes_choices_and_never_lowers_the_similarity():
    changed = 0
    for seed in range(6):
        gram = gram_of(*problem(seed))
        plain, greedy = (remove_units(gram, 4, greedy=flag) for flag in (False, True))
        assert gram.similarity(greedy) >= gram.similarity(plain)
        changed += plain != greedy
    assert changed > 0


def test_a_silent_output_dimension_adds_nothing():
    inputs, weight = problem(0)
    weight[4] = 0
    gram = gram_of(inputs, weight)
    assert gram.similarity(range(UNITS)) == pytest.approx(SIZE - 1, abs=1e-9)
    assert gram.similarity([1, 2]) == pytest.approx(tokenwise_similarity(inputs, weight, [1, 2]), abs=1e-12)


def test_remove_lowest_keeps_the_best_of_every_group_and_the_first_of_equals():
    scores = torch.tensor([3.0, 1.0, 2.0, 5.0, 5.0, 5.0])
    assert remove_lowest(scores, 2) == [0, 3, 4, 5]
    assert remove_lowest(scores, 1, num_groups=2) == [0, 2, 3, 4]
