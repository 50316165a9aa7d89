"""SmallVocabularyData: text with a byte-level BPE tokenizer trained on it, for models trained from scratch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from datamodules.cache import cached
from datamodules.reading import read_texts
from datamodules.text import TextData

END_OF_TEXT = "<|endoftext|>"


class SmallVocabularyData(TextData):
    """`TextData` whose tokenizer is trained on the sources themselves and kept in the cache.

    A small model spends its parameters on its layers then, and not on the embeddings of a large vocabulary. The
    tokenizer sees all splits, as a tokenizer made for a language has; losses per token compare within one vocabulary.
    """

    class Config(TextData.Config):
        """The size of the vocabulary; `tokenizer` is not used."""

        vocab_size: int = Field(1024, ge=257, description="Tokens of the vocabulary: 256 bytes, the end, and merges.")

    config: Config

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, trained at the first use."""
        from pangu_modules.llm.loading import load_tokenizer

        return load_tokenizer(str(self.tokenizer_folder))

    @cached_property
    def tokenizer_folder(self) -> Path:
        """The folder of the tokenizer."""
        texts = [text for source in self.sources.values() for text in read_texts(source, self.config.text_field)]
        digest = hashlib.sha256("\0".join([str(self.config.vocab_size), *texts]).encode()).hexdigest()[:12]
        return cached(f"bpe-{digest}", lambda folder: save_tokenizer(texts, self.config.vocab_size, folder))

    def module_arguments(self) -> dict[str, Any]:
        """Return the tokenizer's folder."""
        return {"tokenizer": str(self.tokenizer_folder)}


def save_tokenizer(texts: Sequence[str], vocab_size: int, folder: Path) -> None:
    """Train a byte-level BPE tokenizer and write it as a transformers folder; any text can be encoded.

    Args:
        texts: what it is trained on.
        vocab_size: tokens of the vocabulary; with little text there may be fewer.
        folder: where it goes.
    """
    from tokenizers import ByteLevelBPETokenizer, Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    lines = (line for text in texts for line in text.splitlines(keepends=True))
    tokenizer.train_from_iterator(lines, vocab_size, special_tokens=[END_OF_TEXT], show_progress=False)
    plain = Tokenizer.from_str(tokenizer.to_str())
    PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT).save_pretrained(
        folder
    )
