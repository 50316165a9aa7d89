"""A GGUF file converted, once, into a plain folder of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pangu_modules.common.files import atomic_folder
from pangu_modules.llm.models.messages import explained, quiet_transformers

MODEL_FILE = "config.json"
"""What every folder of a transformers model has."""

CONVERSION = 2
"""Number of the way GGUF files are converted: a folder in the cache from an earlier one is not taken for a new one.

2: digits are cut one by one where the file says so (SmolLM2's tokenizer does), which 1 left out.
"""


def gguf_to_folder(gguf_file: str | Path, out_folder: str | Path) -> Path:
    """Convert a GGUF file once into a plain transformers folder in float32, with tokenizer and chat template.

    The folder appears only when it is complete; one that is there already is returned as it is.

    Raises:
        ValueError: there is no such file, or it is no model that transformers reads.
    """
    from pangu_modules.llm.models.gguf.reading import read_model
    from pangu_modules.llm.models.gguf.tokenizer import read_tokenizer

    folder = Path(out_folder)
    if not (folder / MODEL_FILE).is_file():
        source = Path(gguf_file).expanduser()
        if not source.is_file():
            raise ValueError(f"model={str(gguf_file)!r}: nothing at {source.absolute()}; give a .gguf file")
        # Whatever device the model asked for is to be on the CPU: meta has no weights to convert.
        with torch.device("cpu"), explained(str(gguf_file)), quiet_transformers():
            model: Any = read_model(str(source), dtype=torch.float32)
        with explained(str(gguf_file), "tokenizer"):
            tokenizer = read_tokenizer(str(source))
        with atomic_folder(folder, holding=MODEL_FILE, replace=False) as temporary, quiet_transformers():
            model.eval().save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    return folder
