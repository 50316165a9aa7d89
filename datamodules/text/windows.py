"""Windows: text as tokens, joined and cut into pieces of equal length. Functions of the tokenizer alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

TEXTS_AT_ONCE = 1000


class Windows(Dataset[dict[str, Tensor]]):
    """Windows of tokens, (windows, tokens) int32, and the domain of each, (windows,) or None."""

    def __init__(self, tokens: Tensor, domain: Tensor | None = None) -> None:
        self.tokens = tokens
        self.domain = domain

    @classmethod
    def joined(cls, parts: Sequence[Windows]) -> Windows:
        """Return the windows of all parts."""
        domains = [part.domain for part in parts if part.domain is not None]
        return cls(torch.cat([part.tokens for part in parts]), torch.cat(domains) if domains else None)

    def chosen(self, mask: Tensor) -> Windows:
        """Return the windows where `mask` (windows,) is true."""
        return Windows(self.tokens[mask], None if self.domain is None else self.domain[mask])

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """Return a whole batch."""
        input_ids = self.tokens[indices].long()
        batch = {"input_ids": input_ids, "labels": input_ids.clone()}
        return batch if self.domain is None else {**batch, "domain": self.domain[indices]}


def tokenize(texts: Sequence[str], tokenizer: Any) -> list[Tensor]:
    """Return what the tokenizer makes of each text, and the end-of-text token behind it, (tokens,) int32 each.

    A document is ``tokenizer(text)``: where the tokenizer adds a token of its own in front (Llama's ``<s>``), every
    document begins with it; an end that it adds itself stands once.

    Raises:
        ValueError: the tokenizer has no end-of-text token.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError("the tokenizer has no end-of-text token (eos_token) to put between documents: set one")
    documents = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        rows = tokenizer(list(texts[start : start + TEXTS_AT_ONCE]))["input_ids"]
        documents += [torch.tensor(row if row[-1:] == [end] else [*row, end], dtype=torch.int32) for row in rows]
    return documents


def pack(documents: Sequence[Tensor], sequence_length: int) -> Tensor:
    """Join documents and cut them into windows, (windows, sequence_length); the end that fills none is left out."""
    joined = torch.cat(list(documents)) if documents else torch.empty(0, dtype=torch.int32)
    count = len(joined) // sequence_length
    return joined[: count * sequence_length].view(count, sequence_length)


def split_blocks(windows: Tensor, shares: Mapping[str, float]) -> dict[str, Tensor]:
    """Split windows into blocks in a row: train first, then the others, each of its share and at least one window."""
    counts = {split: max(1, round(len(windows) * share)) for split, share in shares.items()}
    counts = {"train": len(windows) - sum(counts.values()), **counts}
    if counts["train"] < 1:
        return {"train": windows[:0]}
    return dict(zip(counts, windows.split(list(counts.values())), strict=True))
