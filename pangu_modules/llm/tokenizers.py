"""Tokenizers as plain text, so that checkpoints carry them, and chat prompts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Message = Mapping[str, str]


def tokenizer_files(tokenizer: Any) -> dict[str, str]:
    """Return the files of a transformers tokenizer, name -> text."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}


def tokenizer_from_files(files: Mapping[str, str]) -> Any:
    """Return the transformers tokenizer that `tokenizer_files` described."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / Path(name).name).write_text(text, encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder)


def chat_tokens(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the tokens of a conversation up to where the assistant answers.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError("the tokenizer has no chat template: give prompts as text, or a tokenizer of a chat model")
    tokens: list[int] = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
    return tokens
