"""The tokenizer whose tokens a store's samples are, beside them: by it a teacher of other tokens is found out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pangu_modules.common.files import write_atomically
from pangu_modules.llm.tokenizers import stored_files, tokenizer_files, tokenizer_from_files

FILE = "tokenizer_files.json"  # name -> text


def keep_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write a tokenizer into a store's folder, once; not one with Python code of its own, which nothing would run."""
    if tokenizer is None or (folder / FILE).exists():
        return
    files = tokenizer_files(tokenizer)
    if not any(name.endswith(".py") for name in files):
        write_atomically(folder / FILE, json.dumps(files))


def kept_tokenizer(folder: Path) -> Any:
    """Return the tokenizer that lies in a store's folder, or None; code that it names is not run.

    Raises:
        ValueError: the file is damaged, or names code or places.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        files = json.loads(path.read_text(encoding="utf-8"))
        return tokenizer_from_files(stored_files(files, trust_remote_code=False))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} holds no tokenizer that can be read ({str(error).splitlines()[0]})") from error
