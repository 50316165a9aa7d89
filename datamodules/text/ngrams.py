"""Shared n-grams: how much of one text occurs in another, and which sequences hold any of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Sequences = Tensor | Sequence[Tensor]
"""Texts as tokens: (sequences, tokens), or a list of (tokens,)."""

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""An odd number of scattered bits; hashes are polynomials in it modulo 2^64."""


def shared_ngrams(first: Sequences, second: Sequences, n: int) -> int:
    """Return the number of different n-grams of tokens that occur in both texts; none crosses two sequences."""
    return len(np.intersect1d(_hashes_and_owners(first, n)[0], _hashes_and_owners(second, n)[0]))


def sequences_sharing(sequences: Sequences, text: Sequences, n: int) -> Tensor:
    """Return which sequences hold an n-gram of the text, (sequences,) bool."""
    hashes, owners = _hashes_and_owners(sequences, n)
    shared = torch.zeros(len(sequences), dtype=torch.bool)
    shared[torch.from_numpy(owners[np.isin(hashes, _hashes_and_owners(text, n)[0])])] = True
    return shared


def ngram_hashes(tokens: Tensor, n: int) -> np.ndarray:
    """Return 64-bit hashes of all n-grams: (..., tokens) -> (..., max(0, tokens - n + 1)) uint64.

    Different n-grams have equal hashes with a probability of about 2^-64: between two texts of a million n-grams each,
    there is such a pair with probability 5e-8.
    """
    scattered = tokens.numpy().astype(np.uint64) * MULTIPLIER
    scattered ^= scattered >> np.uint64(29)  # so that neighbouring token ids do not give neighbouring terms
    count = max(0, tokens.shape[-1] - n + 1)
    hashes = np.zeros((*tokens.shape[:-1], count), dtype=np.uint64)
    for offset in range(n):
        hashes *= MULTIPLIER
        hashes += scattered[..., offset : offset + count]
    return hashes


def _hashes_and_owners(sequences: Sequences, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of all n-grams and the number of the sequence that holds each."""
    if isinstance(sequences, Tensor):
        hashes = ngram_hashes(sequences, n)
        counts = np.full(len(hashes), hashes.shape[1])
        return hashes.reshape(-1), np.repeat(np.arange(len(hashes)), counts)
    parts = [ngram_hashes(sequence, n) for sequence in sequences]
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return np.concatenate([np.empty(0, dtype=np.uint64), *parts]), owners
