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
    """Return the transformers tokenizer of a model; arguments as in `load_causal_lm`.

    One that names a class of its own code is read from its ``tokenizer.json``, unless that code is trusted.

    Raises:
        ValueError: there is none, or it is Python code alone that is not trusted.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source = resolve(name_or_path, "tokenizer")
    if is_gguf(source):
        from pangu_modules.llm.models.gguf.tokenizer import read_tokenizer

        with explained(name_or_path, "tokenizer"):
            return read_tokenizer(source)
    if not trust_remote_code and is_code_alone(name_or_path):
        raise ValueError(
            f"tokenizer={name_or_path!r} is Python code that comes with the model, without a tokenizer.json: pass "
            "trust_remote_code=True if you trust that code (on the command line --module.trust_remote_code true), or "
            "name another tokenizer (module.tokenizer)"
        )
    with explained(name_or_path, "tokenizer"), quiet_transformers():
        if not trust_remote_code and _has_class_of_code(source):
            return PreTrainedTokenizerFast.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        return _as_declared(tokenizer, source)


def is_code_alone(name_or_path: str) -> bool:
    """Whether a tokenizer is described by Python code and by no tokenizer.json, as in released openPangu folders."""
    from transformers.utils import has_file

    source = resolve(name_or_path, "tokenizer")
    if is_gguf(source):
        return False
    with explained(name_or_path, "tokenizer"):
        return _has_class_of_code(source) and not has_file(source, "tokenizer.json")


def _has_class_of_code(source: str) -> bool:
    """Whether a tokenizer names a class of its own code that transformers does not have."""
    import transformers
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    declared = get_tokenizer_config(source)
    own = "AutoTokenizer" in declared.get("auto_map", {})
    return own and not hasattr(transformers, str(declared.get("tokenizer_class")))


def _as_declared(tokenizer: Any, source: str) -> Any:
    """Return the tokenizer as its files declare it: for some model types transformers takes a class of its own."""
    from transformers import PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    declared = get_tokenizer_config(source).get("tokenizer_class")
    if type(tokenizer) is PreTrainedTokenizerFast or declared not in AS_IN_THE_FILE:
        return tokenizer
    return PreTrainedTokenizerFast.from_pretrained(source)
