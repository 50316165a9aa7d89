"""The export formats of language models by name; methods add theirs here."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pangu_modules.llm.causal_lm import CausalLM

# Name of a format, and the function (module, folder) that writes it; the first is the default.
EXPORT_FORMATS: dict[str, str] = {
    "transformers": "pangu_modules.llm.export.transformers:export",
    "gguf": "pangu_modules.llm.export.gguf:export_gguf",
    "packed": "pangu_modules.llm.onebit.packing:export_packed",
    "gguf_q1_0": "pangu_modules.llm.onebit.gguf:export_q1_0",
    "gguf_tq1_0": "pangu_modules.llm.onebit.gguf:export_tq1_0",
    "gguf_tq2_0": "pangu_modules.llm.onebit.gguf:export_tq2_0",
}


def export_as(kind: str, module: CausalLM, folder: str | Path) -> None:
    """Write a module to a folder in the format of this name.

    Raises:
        ValueError: the format is unknown, or the model does not fit it.
    """
    if kind not in EXPORT_FORMATS:
        raise ValueError(f"unknown export format {kind!r}; known: {', '.join(EXPORT_FORMATS)}")
    home, _, name = EXPORT_FORMATS[kind].partition(":")
    getattr(importlib.import_module(home), name)(module, folder)
