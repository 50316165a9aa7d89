"""Scores of sequences by n-grams, made once from the target and the raw data: what offline data selection does.

- `BigramPerplexity`: the target's bigram model, as CCNet filters by the perplexity of a small language model
  (Wenzek et al. 2020, arXiv:1911.00359, section 3);
- `ImportanceRatio`: likelihood ratio of target and raw data under bags of hashed n-grams, with Gumbel noise for drawing
  without replacement (DSIR, Xie et al. 2023, arXiv:2302.03169, sections 3 and 4);
- `QualityClassifier`: logistic regression of target against raw data (Brown et al. 2020, arXiv:2005.14165, appendix A).

All see a sequence as tokens (tokens,) int64, and the larger the score, the more alike the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

Selection = Literal["perplexity", "dsir", "classifier"]

BUCKETS = 4096
MULTIPLIER = 1_000_003
"""A prime; a bigram (a, b) falls into bucket ``(a * MULTIPLIER + b) mod buckets``, a token a into ``a mod buckets``."""


class Scorer(Protocol):
    """Scores sequences after it has seen the target and the raw data."""

    def score(self, sequences: Sequence[Tensor]) -> np.ndarray:
        """Return one score per sequence, float64."""
        ...


class BigramPerplexity:
    """Mean log probability per token under a bigram model of the target, interpolated with smoothed unigrams.

    ``p(b | a) = m n(a, b) / n(a) + (1 - m) (n(b) + 1) / (n + V)`` with V one more than the largest token seen at
    construction, and the second term alone where a has not been seen.

    Args:
        target: sequences of the target.
        raw: sequences of the raw data, for the size of the vocabulary.
        mixing: m.
    """

    def __init__(self, target: Sequence[Tensor], raw: Sequence[Tensor], mixing: float = 0.5) -> None:
        self.mixing = mixing
        self.size = 1 + max(int(tokens.max()) for tokens in [*target, *raw] if len(tokens))
        joined = torch.cat(list(target)).numpy()
        counts = np.bincount(joined, minlength=self.size)
        self.unigrams = (counts + 1) / (counts.sum() + self.size)
        self.starts = np.zeros(self.size)
        self.pairs: dict[int, int] = {}
        for tokens in target:
            first, second = tokens[:-1].numpy(), tokens[1:].numpy()
            np.add.at(self.starts, first, 1)
            for pair, count in zip(*np.unique(first * self.size + second, return_counts=True), strict=True):
                self.pairs[int(pair)] = self.pairs.get(int(pair), 0) + int(count)

    def score(self, sequences: Sequence[Tensor]) -> np.ndarray:
        """Return the mean log probability of each sequence's tokens after the first, ``-log(perplexity)``, in nats."""
        return np.array([self._mean_log_probability(tokens.numpy()) for tokens in sequences])

    def _mean_log_probability(self, tokens: np.ndarray) -> float:
        if len(tokens) < 2:
            return 0.0
        tokens = np.minimum(tokens, self.size - 1)
        first, second = tokens[:-1], tokens[1:]
        seen = np.array([self.pairs.get(int(pair), 0) for pair in first * self.size + second], dtype=np.float64)
        starts = self.starts[first]
        mixing = np.where(starts > 0, self.mixing, 0.0)
        bigram = seen / np.maximum(starts, 1)
        return float(np.log(mixing * bigram + (1 - mixing) * self.unigrams[second]).mean())


class ImportanceRatio:
    """DSIR's log importance weight ``sum over n-grams of log p(gram) / q(gram)``, plus Gumbel noise of the sequence.

    q are the shares of hashed unigrams and bigrams in the raw data, one added to each count; p those in the target with
    as many counts as there are buckets added in proportion to q, so that a small target is pulled towards the raw data
    and not towards rare n-grams (the paper adds no counts to speak of; its targets are large). The sequences of largest
    score are a sample without replacement in proportion to the importance weights. The noise is a function
    of seed and tokens, so that a sequence has the same score whenever it is seen.

    Args:
        target: sequences of the target.
        raw: sequences of the raw data.
        seed: of the noise.
        buckets: number of hash values.
    """

    def __init__(self, target: Sequence[Tensor], raw: Sequence[Tensor], seed: int = 0, buckets: int = BUCKETS) -> None:
        self.seed, self.buckets = seed, buckets
        counts, raw_counts = (np.asarray(bags(sequences, buckets).sum(0)).ravel() for sequences in (target, raw))
        raw_shares = (raw_counts + 1) / (raw_counts.sum() + buckets)
        shares = (counts + buckets * raw_shares) / (counts.sum() + buckets)
        self.log_ratio = np.log(shares) - np.log(raw_shares)

    def score(self, sequences: Sequence[Tensor]) -> np.ndarray:
        """Return the log importance weight with noise of each sequence."""
        noise = [np.random.default_rng([self.seed, *tokens.tolist()]).gumbel() for tokens in sequences]
        scores: np.ndarray = bags(sequences, self.buckets) @ self.log_ratio + np.array(noise)
        return scores


class QualityClassifier:
    """Logit that a sequence is of the target and not of the raw data, by logistic regression on its hashed n-grams.

    Features are the square roots of the shares of hashed unigrams and bigrams (vectors of length 1); classes are
    balanced.

    Args:
        target: sequences of the target.
        raw: sequences of the raw data.
        buckets: number of hash values.
    """

    def __init__(self, target: Sequence[Tensor], raw: Sequence[Tensor], buckets: int = BUCKETS) -> None:
        from scipy.sparse import vstack
        from sklearn.linear_model import LogisticRegression

        self.buckets = buckets
        features = vstack([shares(target, buckets), shares(raw, buckets)])
        labels = np.repeat([1, 0], [len(target), len(raw)])
        self.model = LogisticRegression(class_weight="balanced", C=10.0, max_iter=200).fit(features, labels)

    def score(self, sequences: Sequence[Tensor]) -> np.ndarray:
        """Return the logit of each sequence."""
        logits: np.ndarray = self.model.decision_function(shares(sequences, self.buckets))
        return logits


def offline_scorer(method: Selection, target: Sequence[Tensor], raw: Sequence[Tensor], seed: int) -> Scorer:
    """Return the scorer of a method of data selection, made from sequences of the target and of the raw data.

    Args:
        method: 'perplexity', 'dsir' or 'classifier'.
        target: sequences (tokens,) of what training should get better on.
        raw: sequences of the data to select from.
        seed: of the noise of 'dsir'.
    """
    if method == "perplexity":
        return BigramPerplexity(target, raw)
    if method == "dsir":
        return ImportanceRatio(target, raw, seed)
    return QualityClassifier(target, raw)


def sequences_of(batch: Mapping[str, Any]) -> list[Tensor]:
    """Return the tokens of each sequence of a batch without padding, (tokens,) int64 each, on the CPU."""
    rows, mask = batch["input_ids"].cpu(), batch.get("attention_mask")
    if mask is None:
        return list(rows.long())
    return [row[keep.bool()].long() for row, keep in zip(rows, mask.cpu(), strict=True)]


def shares(sequences: Sequence[Tensor], buckets: int) -> Any:
    """Return the square roots of the shares of each sequence's hashed n-grams, sparse rows of length 1."""
    counts = bags(sequences, buckets)
    totals = np.maximum(np.asarray(counts.sum(1)), 1)
    return counts.multiply(1 / totals).sqrt().tocsr()


def bags(sequences: Sequence[Tensor], buckets: int) -> Any:
    """Return the counts of each sequence's hashed unigrams and bigrams, a sparse matrix (sequences, buckets)."""
    from scipy.sparse import csr_matrix

    rows = []
    for tokens in sequences:
        ids = tokens.numpy().astype(np.int64)
        rows.append(np.concatenate([ids % buckets, (ids[:-1] * MULTIPLIER + ids[1:]) % buckets]))
    columns = np.concatenate([np.empty(0, dtype=np.int64), *rows])
    starts = np.cumsum([0, *(len(row) for row in rows)])
    counts = csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(rows), buckets))
    counts.sum_duplicates()
    return counts
