"""SmallVocabularyData: text with a byte-level BPE tokenizer trained on it, for models trained from scratch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from datamodules.text.byte_pairs import trained_tokenizer
from datamodules.text.reading import read_texts
from datamodules.text.running import TextData
from datamodules.text.windows import pack

CHUNK = 16  # windows: long enough that few of them lie at a border, short enough that all splits are of one kind


class SmallVocabularyData(TextData):
    """`TextData` whose tokenizer is trained on the sources themselves and kept in the cache.

    A small model spends its parameters on its layers then, and not on the embeddings of a large vocabulary. The
    tokenizer sees all splits, as a tokenizer made for a language has; losses per token compare within one vocabulary.
    """

    class Config(TextData.Config):
        """The size of the vocabulary, and a split for one long text; `tokenizer` is not used."""

        split_by: Literal["document", "block", "chunk"] = Field(  # type: ignore[assignment]
            "chunk",
            description="Split whole documents at random, one text into blocks in a row, or one text into short "
            "chunks at random (the same for all seeds), so that all splits are of one kind.",
        )
        vocab_size: int = Field(1024, ge=257, description="Tokens of the vocabulary: 256 bytes, the end, and merges.")

    config: Config

    def _windows(self, documents: Sequence[Tensor]) -> dict[str, Tensor]:
        if self.config.split_by != "chunk":
            return super()._windows(documents)
        return split_chunks(pack(documents, self.config.sequence_length), self.config.shares())

    @cached_property
    def tokenizer(self) -> Any:
        """The trained tokenizer, as transformers loads it."""
        from pangu_modules.llm.models.tokenizer_loading import load_tokenizer

        return load_tokenizer(str(self.tokenizer_folder))

    @cached_property
    def tokenizer_folder(self) -> Path:
        """Its transformers folder in the cache; the first use trains it on the text of all splits."""
        config = self.config
        texts = [
            text
            for source in self.sources.values()
            for text in read_texts(source, config.text_field, config.on_bad_row)
        ]
        return trained_tokenizer(texts, config.vocab_size, min_count=2, by_line=True)

    def module_arguments(self) -> dict[str, Any]:
        """Return the tokenizer's folder as its name: the module loads this very one."""
        return {"tokenizer": str(self.tokenizer_folder)}


def split_chunks(windows: Tensor, shares: Mapping[str, float]) -> dict[str, Tensor]:
    """Return the windows (n, tokens) of each split: chunks of 16 windows in a row, drawn at random with a fixed seed.

    Args:
        windows: of one text, in its order.
        shares: of the splits; the rest is for train.
    """
    chunks = windows.split(CHUNK)
    order = torch.randperm(len(chunks), generator=torch.Generator().manual_seed(0)).tolist()
    parts: dict[str, Tensor] = {}
    start = 0
    for split, share in shares.items():
        count = round(share * len(chunks))
        parts[split] = _joined([chunks[index] for index in sorted(order[start : start + count])], windows)
        start += count
    return {**parts, "train": _joined([chunks[index] for index in sorted(order[start:])], windows)}


def _joined(chunks: Sequence[Tensor], windows: Tensor) -> Tensor:
    return torch.cat([windows[:0], *chunks])
