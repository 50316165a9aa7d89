import itertools
import math

import numpy as np
import pytest
import torch

from pangu_modules.llm.weighting.baselines.ngrams import (
    MULTIPLIER,
    BigramPerplexity,
    ImportanceRatio,
    QualityClassifier,
    bags,
)
from pangu_modules.llm.weighting.baselines.weights import (
    kept_weights,
    loss_weights,
    random_weights,
    sharpened,
    threshold_of,
    uniform_weights,
)
from pangu_modules.llm.weighting.model import effective_batch_size


def sequences(count, low, high, length=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(low, high, (count, length), generator=generator))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.75, 0.99])
def test_random_weights_have_the_effective_sample_size_that_was_asked_for(share):
    for seed in range(5):
        weights = random_weights(16, share, np.random.default_rng(seed))
        assert weights.sum().item() == pytest.approx(1, abs=1e-6)  # float32
        assert effective_batch_size(weights.double()).item() == pytest.approx(16 * share, rel=1e-5)
    torch.testing.assert_close(random_weights(16, 1.0, np.random.default_rng(0)), uniform_weights(16))


def test_random_weights_prefer_no_place():
    generator = np.random.default_rng(0)
    mean = torch.stack([random_weights(4, 0.6, generator) for _ in range(4000)]).mean(0)
    assert (mean - 0.25).abs().max() < 0.01  # deviation of a weight 0.2 / sqrt(4000) = 0.003


def test_sharpened_keeps_the_order_and_stops_at_the_ends():
    scores = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
    weights = sharpened(scores, 2.0)
    assert weights.argsort().tolist() == scores.argsort().tolist()
    torch.testing.assert_close(sharpened(scores, 4.0), torch.full((4,), 0.25, dtype=torch.float64))
    assert effective_batch_size(sharpened(scores, 0.5)).item() == pytest.approx(1)


def test_loss_weights_by_loops():
    losses = [1.0, 3.0, 2.5]
    for prefer, sign in (("high", 1), ("low", -1)):
        shares = [math.exp(sign * loss / 0.7) for loss in losses]
        want = torch.tensor([share / sum(shares) for share in shares])
        given = torch.tensor(losses, requires_grad=True)
        weights = loss_weights(given, prefer, tau=0.7)
        torch.testing.assert_close(weights, want)
        assert not weights.requires_grad


def test_kept_weights():
    assert kept_weights(torch.tensor([True, False, True, False])).tolist() == [0.5, 0, 0.5, 0]
    assert kept_weights(torch.tensor([False, False])).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("keep", "kept"), [(0.5, 5), (0.3, 3), (1.0, 10), (0.01, 1)])
def test_the_threshold_keeps_the_share(keep, kept):
    scores = np.random.default_rng(0).permutation(10).tolist()
    assert sum(score >= threshold_of(scores, keep) for score in scores) == kept
    with pytest.raises(ValueError, match="no scores"):
        threshold_of([], keep)


def test_bags_by_loops():
    rows = [torch.tensor([3, 1, 3, 1]), torch.tensor([2]), torch.tensor([], dtype=torch.long)]
    want = np.zeros((3, 7))
    for row, tokens in enumerate(rows):
        ids = tokens.tolist()
        for token in ids:
            want[row, token % 7] += 1
        for first, second in itertools.pairwise(ids):
            want[row, (first * MULTIPLIER + second) % 7] += 1
    np.testing.assert_array_equal(bags(rows, 7).toarray(), want)


def test_bigram_scores_by_loops():
    target, raw = sequences(4, 0, 6), sequences(2, 0, 9, seed=1)
    joined = [token for row in target for token in row.tolist()]
    pairs = [pair for row in target for pair in zip(row.tolist()[:-1], row.tolist()[1:], strict=True)]
    starts = [first for first, _ in pairs]

    def probability(first, second):
        unigram = (joined.count(second) + 1) / (len(joined) + 9)
        if first not in starts:
            return unigram
        return 0.5 * pairs.count((first, second)) / starts.count(first) + 0.5 * unigram

    model = BigramPerplexity(target, raw)
    for row, score in zip(raw, model.score(raw), strict=True):
        ids = row.tolist()
        logs = [math.log(probability(first, second)) for first, second in itertools.pairwise(ids)]
        assert score == pytest.approx(sum(logs) / len(logs), rel=1e-12)
    assert sum(probability(0, second) for second in range(9)) == pytest.approx(1)
    assert model.score([torch.tensor([5])]).tolist() == [0.0]


def test_importance_ratio_by_loops():
    target, raw = sequences(5, 0, 20), sequences(5, 0, 40, seed=1)
    model = ImportanceRatio(target, raw, seed=4, buckets=16)
    seen, q = bags(target, 16).toarray().sum(0), bags(raw, 16).toarray().sum(0) + 1
    q = q / q.sum()
    for row, score in zip(raw, model.score(raw), strict=True):
        ids, total = row.tolist(), 0.0
        grams = [token % 16 for token in ids]
        grams += [(a * MULTIPLIER + b) % 16 for a, b in itertools.pairwise(ids)]
        for gram in grams:
            total += math.log((seen[gram] + 16 * q[gram]) / (seen.sum() + 16)) - math.log(q[gram])
        noise = np.random.default_rng([4, *ids]).gumbel()
        assert score == pytest.approx(total + noise, rel=1e-10)
    assert model.score(raw).tolist() == model.score(raw).tolist()
    assert model.score(raw).tolist() != ImportanceRatio(target, raw, seed=5, buckets=16).score(raw).tolist()


def build(method, target, raw):
    return {"perplexity": BigramPerplexity, "dsir": ImportanceRatio, "classifier": QualityClassifier}[method](
        target, raw
    )


@pytest.mark.parametrize("method", ["perplexity", "dsir", "classifier"])
def test_scores_find_what_is_like_the_target(method):
    target = sequences(40, 0, 50, seed=1)
    raw = [*sequences(60, 0, 50, seed=2), *sequences(60, 40, 120, seed=3)]
    scores = build(method, target, raw).score(raw)
    assert scores[:60].min() > scores[60:].max()


def test_the_order_of_words_counts():
    """Shuffled sequences have the same unigrams; only bigrams tell them apart."""
    generator = np.random.default_rng(0)
    successor = generator.permutation(40)

    def chain(start):
        ids = [start]
        for _ in range(29):
            ids.append(int(successor[ids[-1]]) if generator.random() < 0.8 else int(generator.integers(40)))
        return torch.tensor(ids)

    target, good = [chain(n % 40) for n in range(60)], [chain(n % 40) for n in range(40)]
    bad = [row[torch.from_numpy(generator.permutation(30))] for row in good]
    for method in ("perplexity", "dsir", "classifier"):
        scores = build(method, target, [*good, *bad]).score([*good, *bad])
        assert np.median(scores[:40]) > np.quantile(scores[40:], 0.9), method
