"""What samples and scores were made by: hashes of a model's weights, of its chat template and of its tokens."""

from __future__ import annotations

import hashlib
from typing import Any

from pangu_modules.llm.generation.weights_hash import weights_hash

REFERENCES = "references"
"""In place of a model's hash: no model wrote these answers, they came with the tasks."""
ON_SERVER = " on a server"


def model_identity(engine: Any, stage: Any) -> dict[str, str]:
    """Return hashes of an engine's model, template and tokens; of a server its model's name, the rest is its own."""
    if engine.model is None:
        return {"model": f"{stage.engine.model}{ON_SERVER}", "template": "", "tokenizer": ""}
    return {"model": weights_hash(engine.model), **text_identity(engine.tokenizer)}


def is_weights_hash(model: str) -> bool:
    """Whether what made answers, as an identity names it, is told from others by its weights."""
    return model != REFERENCES and not model.endswith(ON_SERVER)


def text_identity(tokenizer: Any) -> dict[str, str]:
    """Return hashes of a tokenizer's chat template and of its tokens; empty where there is none."""
    template = getattr(tokenizer, "chat_template", None)
    return {"template": "" if template is None else _hash(str(template)), "tokenizer": vocabulary_hash(tokenizer)}


def vocabulary_hash(tokenizer: Any) -> str:
    """Return a hash of a tokenizer's tokens and their numbers; empty without one."""
    if tokenizer is None:
        return ""
    return _hash(repr(sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
