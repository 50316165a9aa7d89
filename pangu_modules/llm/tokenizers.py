"""Tokenizers as plain text, so that checkpoints carry them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def tokenizer_files(tokenizer: Any) -> dict[str, str]:
    """Return the files of a transformers tokenizer, name -> text."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}


def tokenizer_from_files(files: Mapping[str, str]) -> Any:
    """Return the transformers tokenizer that `tokenizer_files` described."""
    from transformers import AutoTokenizer

    with tokenizer_folder(files) as folder:
        return AutoTokenizer.from_pretrained(folder)


@contextmanager
def tokenizer_folder(files: Mapping[str, str]) -> Iterator[Path]:
    """Yield a temporary folder with these files, name -> text, for whoever reads a tokenizer from the disk."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / Path(name).name).write_text(text, encoding="utf-8")
        yield Path(folder)
