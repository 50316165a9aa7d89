"""Loading tokenizers: of a hub id, a folder, a GGUF file or the embedded model."""

from __future__ import annotations

from typing import Any

from pangu_modules.llm.models.messages import explained, quiet_transformers
from pangu_modules.llm.models.names import is_gguf, resolve

AS_IN_THE_FILE = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes that stand for a tokenizer exactly as its tokenizer.json describes it."""

DEFAULT_TOKENIZER = "smollm2"
"""What text is cut with where neither the data nor the model has a tokenizer."""


def load_tokenizer(name_or_path: str, *, trust_remote_code: bool = False) -> Any:
    """Return the transformers tokenizer of a model; arguments as in `load_causal_lm`."""
    from transformers import AutoTokenizer

    source = resolve(name_or_path, "tokenizer")
    if is_gguf(source):
        from pangu_modules.llm.models.gguf.tokenizer import read_tokenizer

        with explained(name_or_path, "tokenizer"):
            return read_tokenizer(source)
    with explained(name_or_path, "tokenizer"), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        return _as_declared(tokenizer, source)


def _as_declared(tokenizer: Any, source: str) -> Any:
    """Return the tokenizer as its files declare it: for some model types transformers takes a class of its own."""
    from transformers import PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    declared = get_tokenizer_config(source).get("tokenizer_class")
    if type(tokenizer) is PreTrainedTokenizerFast or declared not in AS_IN_THE_FILE:
        return tokenizer
    return PreTrainedTokenizerFast.from_pretrained(source)
