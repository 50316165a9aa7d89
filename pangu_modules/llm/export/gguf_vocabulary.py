"""A tokenizer as GGUF's keys, compared with the original before anything is written."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

from pangu_modules.llm.export.exported import ExportedModule
from pangu_modules.llm.models.gguf.tokenizer import (
    BYTE,
    CONTROL,
    KEYS,
    NORMAL,
    PRE_TOKENIZERS,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    tokenizer_of,
)
from pangu_modules.llm.text_files import files_of_tokenizer
from pangu_modules.llm.tokenizers import tokenizer_folder

PROBES = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "  two  spaces, a\ttab\n\nand\r\nlines \n ",
    "it's I'LL don't we've",
    "3.14159 1000000 2024-05-17 x2 7z",
    "naïve café, Straße, ÉCOLE",
    "привет, мир",
    "你好,世界。今天 12 点",
    "🙂👩‍🚀 →∞≠",
    "def f(x):\n    return x[0] + 1  # comment\n",
    "https://example.org/a?b=c&d=%20e",
    "a",
    " a",
    "",
    "\n\n\n",
    "CamelCaseWords_and_snakes",
)
"""Texts that a tokenizer read back from the keys must cut as the original does."""

LEADING_SPACE = (
    "llama.cpp puts a space before every text of this tokenizer, transformers only before one that begins with none: a "
    "text that begins with a space is cut differently"
)


def vocabulary_keys(module: ExportedModule, pre_tokenizer: str | None = None) -> dict[str, Any]:
    """Return the keys ``tokenizer.*`` for the module's tokenizer.

    Args:
        module: has a BPE tokenizer of bytes (GPT-2's, Llama 3's, Qwen's kind) or of SentencePiece's kind (Llama 2's,
            Mistral's, Gemma's).
        pre_tokenizer: llama.cpp's name of how text is cut before merging; by default found from the tokenizer. With a
            name given, the tokenizer is not compared.

    Raises:
        ValueError: the tokenizer is of another kind, or GGUF would cut texts in another way.
    """
    files = files_of_tokenizer(module.runtime)
    text = files.get("tokenizer.json")
    description: dict[str, Any] = json.loads(text) if text is not None else {"model": {"type": "none"}, "decoder": None}
    special = _special_vocabulary(files)
    tokens, types = _tokens(module, description)
    keys: dict[str, Any] = {f"{KEYS}tokens": tokens, f"{KEYS}token_type": types, f"{KEYS}merges": special.merges}
    if _is_byte_level(description):
        keys |= {f"{KEYS}model": "gpt2", f"{KEYS}pre": pre_tokenizer or pre_tokenizer_name(description)}
    elif description["model"].get("byte_fallback"):
        prefix = _space_prefix(description)
        scores = _scores(tokens, special.merges)
        keys |= {f"{KEYS}model": "llama", f"{KEYS}add_space_prefix": prefix, f"{KEYS}scores": scores}
    else:
        kind, decoder = description["model"]["type"], (description["decoder"] or {"type": "none"})["type"]
        raise ValueError(
            f"export: GGUF needs a byte-level BPE tokenizer, this one has model {kind}, decoder {decoder} "
            "(or SentencePiece's BPE with byte_fallback)"
        )
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    keys |= {f"{KEYS}{names[kind]}_token_id": number for kind, number in special.special_token_ids.items()}
    keys |= _ends(module.tokenizer)
    if special.chat_template is not None:
        keys["tokenizer.chat_template"] = special.chat_template
    if pre_tokenizer is None:
        cutter = description["pre_tokenizer"] or {}
        _compare(
            module.tokenizer, keys, [text for text in PROBES if cutter.get("type") != "Metaspace" or text[:1] != " "]
        )
        if cutter.get("type") == "Metaspace":
            warnings.warn(f"GGUF: {LEADING_SPACE}", stacklevel=2)
    return keys


def pre_tokenizer_name(description: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of a byte-level tokenizer's way to cut text, from its ``tokenizer.json``.

    Raises:
        ValueError: the way has no name here.
    """
    outer = description["pre_tokenizer"] or {"type": "none"}
    steps = outer["pretokenizers"] if outer["type"] == "Sequence" else [outer]
    found = tuple(step["pattern"].get("Regex") if step["type"] == "Split" else step["type"] for step in steps)
    if found not in PRE_TOKENIZERS:
        raise ValueError(f"the tokenizer cuts text by {found}, whose name in llama.cpp must be given as pre_tokenizer")
    return PRE_TOKENIZERS[found]


def _is_byte_level(description: Mapping[str, Any]) -> bool:
    return (description["model"]["type"], (description["decoder"] or {"type": ""})["type"]) == ("BPE", "ByteLevel")


def _special_vocabulary(files: Mapping[str, str]) -> Any:
    from gguf import SpecialVocab

    with tokenizer_folder(files) as folder:
        return SpecialVocab(folder, load_merges=True, special_token_types=("bos", "eos", "unk", "pad"))


def _tokens(module: ExportedModule, description: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Return name and GGUF's type of every row of the embedding."""
    vocabulary = description["model"].get("vocab", {})
    numbered = {number: token for token, number in vocabulary.items()} if isinstance(vocabulary, dict) else {}
    added = {token["id"]: token for token in description.get("added_tokens", ())}
    numbered |= {number: token["content"] for number, token in added.items()}
    unknown = description["model"].get("unk_token")
    names, types = [], []
    model: Any = module.model
    for number in range(model.get_input_embeddings().weight.shape[0]):
        token = numbered.get(number, f"[PAD{number}]")
        names.append(token)
        if number not in numbered:
            types.append(UNUSED)
        elif token == unknown and description["model"].get("byte_fallback"):
            types.append(UNKNOWN)
        elif number in added:
            types.append(CONTROL if added[number]["special"] else USER_DEFINED)
        else:
            types.append(BYTE if description["model"].get("byte_fallback") and _is_byte(token) else NORMAL)
    return names, types


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _space_prefix(description: Mapping[str, Any]) -> bool:
    """Return whether a SentencePiece tokenizer puts a space before a text.

    Raises:
        ValueError: it treats spaces in a way that GGUF does not know.
    """
    normalizer, cutter = description["normalizer"], description["pre_tokenizer"]
    steps = normalizer["normalizers"] if (normalizer or {}).get("type") == "Sequence" else [normalizer]
    kinds = [step["type"] for step in steps if step is not None]
    if cutter is None or cutter["type"] == "Split":  # Gemma's Split on spaces finds none: they are replaced before
        if kinds == ["Prepend", "Replace"]:
            return True
        if kinds == ["Replace"]:
            return False
    elif cutter["type"] == "Metaspace" and not kinds and cutter.get("replacement") == SPACE:
        return bool(cutter.get("prepend_scheme", "always") != "never")
    found = (kinds, None if cutter is None else cutter["type"])
    raise ValueError(f"export: the tokenizer treats spaces by {found}, which GGUF's SentencePiece tokenizer does not")


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Return scores by which SentencePiece merges in the order of `merges`: the earlier, the larger."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    last = len(merges)
    return [-float(ranks.get(token, last)) for token in tokens]


def _ends(tokenizer: Any) -> dict[str, bool]:
    """Return whether the tokenizer puts its tokens of begin and end around a text."""
    ids = tokenizer("a")["input_ids"]
    ends = {"bos": (ids[0], tokenizer.bos_token_id), "eos": (ids[-1], tokenizer.eos_token_id)}
    return {f"{KEYS}add_{name}_token": one == other for name, (one, other) in ends.items()}


def _compare(tokenizer: Any, keys: Mapping[str, Any], texts: list[str]) -> None:
    """Refuse keys from which a reader would cut texts in another way.

    Raises:
        ValueError: with the text, and both ways.
    """
    again = tokenizer_of(keys)
    for text in texts:
        own, other = tokenizer(text)["input_ids"], again(text)["input_ids"]
        if own != other:
            raise ValueError(
                f"export: GGUF cannot hold this tokenizer: it makes {own[:8]} of {text[:30]!r}, and what GGUF can say "
                f"of it would make {other[:8]}"
            )
