"""The text files that a model brings, tokenizer and generation settings: collected for checkpoints, and read there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pangu_modules.llm.models.loading import stored_dtype
from pangu_modules.llm.text_checks import find_tokenizer
from pangu_modules.llm.tokenizers import stored_files, tokenizer_files, tokenizer_from_files

GENERATION_FILE = "generation_config.json"
"""The file with a model's settings of generation, among the text files that a module carries."""


def collect_text(config: Any, runtime: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Return what the checkpoints of a model just built are to hold of its source.

    Args:
        config: of the module: `CausalLM.Config`.
        runtime: see `find_tokenizer`.
        model: a transformers model.

    Returns:
        ``files``, text files as name -> text, and ``dtype``, the type that the weights were stored in.

    Raises:
        ValueError: see `find_tokenizer`.
    """
    files = {GENERATION_FILE: model.generation_config.to_json_string()}
    tokenizer = find_tokenizer(config, runtime, model.config.vocab_size)
    if tokenizer is not None:
        files |= tokenizer_files(tokenizer)
    name, trusted = config.model, config.trust_remote_code
    stored = "float32" if name is None else stored_dtype(name, trust_remote_code=trusted)
    return {"files": files, "dtype": stored}


def text_of_start(config: Any, runtime: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the text files of a checkpoint to start from, where nothing else names a tokenizer; otherwise nothing.

    Args:
        config: of the module: `CausalLM.Config`.
        runtime: what the module is built with beside it.
        stored: the checkpoint's hyper-parameters.
    """
    named = config.model is not None or config.tokenizer is not None
    if named or {"tokenizer", "default_tokenizer", "files"} & set(runtime) or "files" not in stored:
        return {}
    files = stored_files(stored["files"], trust_remote_code=config.trust_remote_code)
    return {"files": files, **({"dtype": stored["dtype"]} if "dtype" in stored else {})}


def take_generation_settings(model: Any, files: Mapping[str, str]) -> None:
    """Give a transformers model the generation settings of a checkpoint's text files, if they are among them."""
    from transformers import GenerationConfig

    settings = files.get(GENERATION_FILE)
    if settings is not None:
        model.generation_config = GenerationConfig.from_dict(json.loads(settings))


def files_of_tokenizer(runtime: Mapping[str, Any]) -> dict[str, str]:
    """Return the tokenizer's part of ``runtime["files"]``, name -> text; empty for a model of bare token ids."""
    return {name: text for name, text in runtime.get("files", {}).items() if name != GENERATION_FILE}


def tokenizer_of(runtime: Mapping[str, Any], *, trust_remote_code: bool) -> Any:
    """Return the transformers tokenizer of ``runtime["files"]``, or None for a model of bare token ids."""
    files = files_of_tokenizer(runtime)
    return tokenizer_from_files(files, trust_remote_code=trust_remote_code) if files else None
