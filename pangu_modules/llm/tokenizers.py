"""Tokenizers as plain text, so that checkpoints carry them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pangu_modules.common.files import safe_name

MODEL_FILES = ("config.json", "model.safetensors.index.json")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".so")
"""Names that a text file of a checkpoint cannot have: they are the model's own, or read as weights or code."""


def tokenizer_files(tokenizer: Any) -> dict[str, str]:
    """Return the files of a transformers tokenizer, name -> text."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}


def tokenizer_from_files(files: Mapping[str, str], *, trust_remote_code: bool = False) -> Any:
    """Return the transformers tokenizer that `tokenizer_files` described.

    A chat template is a program too; transformers runs it in jinja2's sandbox, which gives it no files and no imports.
    """
    from transformers import AutoTokenizer

    with tokenizer_folder(files) as folder:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def write_files(files: Mapping[str, str], folder: Path) -> None:
    """Write a model's text files into a folder that this process made.

    Raises:
        ValueError: a name leads out of the folder, or belongs to a file that is there already.
    """
    for name, text in files.items():
        path = folder / safe_name(name, "the checkpoint")
        if path.exists():
            raise ValueError(f"the checkpoint holds a text file {name!r}, which is a name of the model's own files")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def stored_files(files: Mapping[str, str], *, trust_remote_code: bool) -> dict[str, str]:
    """Return the text files of a checkpoint as far as they may count: they name no code and no other files.

    Args:
        files: name -> text.
        trust_remote_code: whether the caller, not the checkpoint, has allowed the model's own Python code.

    Raises:
        ValueError: a name is a path or one of the model's own files, or the code of a tokenizer is not trusted.
    """
    for name in files:
        safe_name(name, "the checkpoint")
        if name in MODEL_FILES or name.endswith(WEIGHTS):
            raise ValueError(f"the checkpoint holds a text file {name!r}, which is a name of the model's own files")
        if name.endswith(".py") and not trust_remote_code:
            raise ValueError(
                f"the checkpoint's tokenizer brings Python code ({name}), and a checkpoint does not say what is run: "
                "if you trust it, pass trust_remote_code=True (on the command line --module.trust_remote_code true)"
            )
    return {
        name: _without_places(text, trust_remote_code) if name.endswith("_config.json") else text
        for name, text in files.items()
    }


def _without_places(text: str, trust_remote_code: bool) -> str:
    """Return a configuration's JSON without what names code or files elsewhere."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the checkpoint's tokenizer or generation settings are no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"the checkpoint's tokenizer or generation settings are no mapping but {text[:40]!r}")
    places = [name for name in values if name.endswith("_file") or (name == "auto_map" and not trust_remote_code)]
    if not places:
        return text
    return json.dumps({name: value for name, value in values.items() if name not in places}, indent=2)


@contextmanager
def tokenizer_folder(files: Mapping[str, str]) -> Iterator[Path]:
    """Yield a temporary folder with these files, name -> text, for whoever reads a tokenizer from the disk."""
    with tempfile.TemporaryDirectory() as folder:
        write_files(files, Path(folder))
        yield Path(folder)
