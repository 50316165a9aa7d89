"""Choosing tokens: the distribution, its limits, and a generator for each row."""

import numpy as np
import pytest
import torch

from pangu_modules.llm.generation.decoding.sampling import choose, draw, kept_logits, random_numbers
from pangu_modules.llm.generation.settings import GenerationSettings


def settings(**fields):
    return GenerationSettings(**{"temperature": 1.0, "logprobs": True, **fields})


def seeded_logits(rows=3, vocabulary=50, ties=False):
    logits = 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return logits.round() if ties else logits


def kept_by_hand(logits, top_k, top_p):
    """The numbers of the tokens that may be drawn, one token after the other."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    order = order[: top_k or len(order)]
    weights = np.exp(np.array([logits[token] for token in order]) - max(logits))
    kept, mass = [], 0.0
    for token, weight in zip(order, weights / weights.sum(), strict=True):
        if mass >= top_p and kept:
            break
        kept.append(token)
        mass += weight
    return set(kept)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (7, 1.0), (0, 0.8), (7, 0.6), (1, 0.5), (0, 1e-6), (50, 0.99)])
def test_kept_tokens_equal_the_reference(top_k, top_p, ties):
    """Catches top-p before top-k, a nucleus that stops short of its share, and ties taken by topk in any order."""
    logits = seeded_logits(ties=ties)
    kept = kept_logits(logits, settings(top_k=top_k, top_p=top_p))
    for row, found in zip(logits.tolist(), kept, strict=True):
        assert set(torch.isfinite(found).nonzero().flatten().tolist()) == kept_by_hand(row, top_k, top_p)
    assert torch.equal(kept[torch.isfinite(kept)], logits[torch.isfinite(kept)])


def test_a_nucleus_beyond_the_first_thousand_tokens_is_found():
    logits = torch.zeros(2, 3000, dtype=torch.float64)
    assert torch.isfinite(kept_logits(logits, settings(top_p=0.5))).sum(1).tolist() == [1500, 1500]


def test_drawn_tokens_are_those_of_a_loop_over_the_cdf():
    """Catches a CDF in another order than the tokens', and an index that is off by one."""
    logits = kept_logits(seeded_logits(rows=200), settings(top_k=9))
    uniforms = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens, logprobs = draw(logits, uniforms)
    for row, uniform, token, logprob in zip(logits, uniforms.tolist(), tokens.tolist(), logprobs.tolist(), strict=True):
        probabilities = row.softmax(-1).tolist()
        total = 0.0
        expected = -1
        while uniform >= total:
            expected += 1
            total += probabilities[expected]
        assert token == expected
        assert logprob == pytest.approx(np.log(probabilities[expected]), abs=1e-12)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_a_token_without_probability_is_never_drawn(uniform):
    """Catches `right=False` at 0 and a threshold that rounds up to the whole mass at almost 1."""
    logits = torch.full((1, 6), -torch.inf, dtype=torch.float64)
    logits[0, 2:4] = torch.tensor([0.3, 1.7])
    tokens, _ = draw(logits, torch.tensor([uniform], dtype=torch.float64))
    assert tokens.tolist() == [2 if uniform == 0 else 3]


def test_both_log_probabilities_are_those_of_their_distributions():
    logits = seeded_logits()
    limits = settings(temperature=0.5, top_k=6, top_p=0.9)
    choice = choose(logits, limits, [random_numbers(seed) for seed in range(3)])
    for row, token, (own, sampled) in zip(logits, choice.tokens, choice.logprobs, strict=True):
        assert own == pytest.approx(float(row.log_softmax(-1)[token]), abs=1e-12)
        kept = sorted(kept_by_hand((row / 0.5).tolist(), 6, 0.9))
        expected = (row[kept] / 0.5).log_softmax(-1)[kept.index(token)]
        assert sampled == pytest.approx(float(expected), abs=1e-12)


def test_the_likeliest_token_is_certain_at_temperature_0():
    logits = seeded_logits().float()
    choice = choose(logits, settings(temperature=0.0), [])
    assert choice.tokens == logits.argmax(-1).tolist()
    assert [sampled for _, sampled in choice.logprobs] == [0.0] * 3
    assert choose(logits, settings(temperature=0.0, logprobs=False), []).logprobs == [None] * 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(temperature):
    logits = torch.tensor([[0.0, torch.nan, 1.0]])
    with pytest.raises(ValueError, match="logits are not finite"):
        choose(logits, settings(temperature=temperature), [random_numbers(0)])


def test_a_row_draws_the_same_beside_others():
    """Catches one generator for the whole batch."""
    logits = seeded_logits()
    together = choose(logits, settings(), [random_numbers(seed) for seed in range(3)]).tokens
    alone = [choose(logits[row : row + 1], settings(), [random_numbers(row)]).tokens[0] for row in range(3)]
    assert together == alone
