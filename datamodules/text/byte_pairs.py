"""A byte-level BPE tokenizer trained on texts and kept in the cache, for models that are trained from scratch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pangu_modules.common.cache import cached

END_OF_TEXT = "<|endoftext|>"


def trained_tokenizer(texts: Sequence[str], vocab_size: int, *, min_count: int = 0, by_line: bool = False) -> Path:
    """Return the transformers folder of a tokenizer trained on `texts`; it can encode any text.

    The folder lies in the cache (``$PANGU_CACHE``), where the same texts are trained on once. The end-of-text token is
    the only special one, and pads too.

    Args:
        texts: training text.
        vocab_size: number of tokens: 256 bytes, the end of text, and merges; fewer if no more pairs can be merged.
        min_count: how often a pair must occur to be merged.
        by_line: count pairs within lines alone, so that no token holds the end of one line and the start of the next.
    """
    # All that the tokens depend on is part of the name: a folder of the cache never changes its content.
    digest = hashlib.sha256(f"{vocab_size} {min_count} {by_line}".encode())
    for text in texts:
        digest.update(text.encode() + b"\0")  # the end of a text counts: no pair goes over it

    def make(folder: Path) -> None:
        train_tokenizer(texts, folder, vocab_size, min_count=min_count, by_line=by_line)

    return cached(f"bpe-{vocab_size}-{digest.hexdigest()[:16]}", make)


def train_tokenizer(
    texts: Sequence[str], folder: Path, vocab_size: int, *, min_count: int = 0, by_line: bool = False
) -> None:
    """Train a tokenizer and write it into `folder`; arguments as for `trained_tokenizer`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_count,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces = (line for text in texts for line in text.splitlines(keepends=True)) if by_line else texts
    bpe.train_from_iterator(pieces, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
    fast.save_pretrained(folder)
