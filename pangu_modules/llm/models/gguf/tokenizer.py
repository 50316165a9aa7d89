"""Tokenizers as GGUF's keys, read: byte-level BPE (``gpt2``) and SentencePiece's BPE with bytes (``llama``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pangu_modules.llm.models.gguf.file import gguf_file

SPACE = "\u2581"  # how SentencePiece writes a space
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # GGUF's types of tokens
KEYS = "tokenizer.ggml."

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (LLAMA3_PATTERN, "ByteLevel"): "llama-bpe",
    (QWEN2_PATTERN, "ByteLevel"): "qwen2",
    (TEKKEN_PATTERN, "ByteLevel"): "tekken",
    (GPT4O_PATTERN, "ByteLevel"): "gpt-4o",
}
"""How a byte-level BPE cuts text before merging: tokenizers' own steps -> llama.cpp's name."""

SAME_CUTS = {
    "gpt-2": ("default", "phi-2", "mpt", "olmo", "jais", "jina-es", "jina-de", "trillion", "granite-docling"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "dbrx", "smaug-bpe"),
    "qwen2": ("deepseek-r1-qwen", "kormo", "megrez"),
    "gpt-4o": ("llama4", "kanana2"),
}
WHOLE_WORDS = ("llama-bpe", "tekken")  # cuts with which a word that is a token is not merged from its bytes


def read_tokenizer(path: str | Path) -> Any:
    """Return the transformers tokenizer of a GGUF file.

    Raises:
        ValueError: it is no whole GGUF file, or its tokenizer is of a kind that is unknown here.
    """
    with gguf_file(path) as file:
        return tokenizer_of(file.keys)


def holds_tokenizer(path: str | Path) -> bool:
    """Whether a GGUF file has a tokenizer, of a known kind or not."""
    with gguf_file(path) as file:
        return file.keys.get(f"{KEYS}model", "none") not in ("none", "no_vocab")


def tokenizer_of(keys: Mapping[str, Any]) -> Any:
    """Return the transformers tokenizer that a file's keys describe.

    Raises:
        ValueError: it is of a kind that is unknown here.
    """
    from transformers import PreTrainedTokenizerFast

    kind = keys.get(f"{KEYS}model")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders or f"{KEYS}tokens" not in keys:
        raise ValueError(
            f"its tokenizer is of kind {kind!r}, and only {', '.join(builders)} are read; name the model's tokenizer "
            "(a folder or hub id)"
        )
    backend = builders[kind](keys)
    tokens, types = keys[f"{KEYS}tokens"], keys.get(f"{KEYS}token_type") or []
    _add_whole_tokens(backend, tokens, types)
    ids = {name: keys.get(f"{KEYS}{key}_token_id") for name, key in _SPECIAL.items()}
    special = {name: tokens[number] for name, number in ids.items() if number is not None}
    _add_ends(backend, keys, special, ids)
    template = keys.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **special)


_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def _byte_level(keys: Mapping[str, Any]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    given = keys.get(f"{KEYS}pre", "default")
    name = next((name for name, others in SAME_CUTS.items() if given in others), given)
    steps = next((steps for steps, known in PRE_TOKENIZERS.items() if known == name), None)
    if steps is None:
        raise ValueError(
            f"its tokenizer cuts text as {given!r} does, which is unknown here; name the model's tokenizer"
        )
    merges = [tuple(merge.split(" ")) for merge in keys[f"{KEYS}merges"]]
    vocabulary = _vocabulary(keys)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=name in WHOLE_WORDS))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=len(steps) == 1 or steps[0] == "Digits")
    if len(steps) == 1:
        backend.pre_tokenizer = byte_level
    else:
        digits = steps[0] == "Digits"
        first = pre_tokenizers.Digits(True) if digits else pre_tokenizers.Split(Regex(steps[0]), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(keys: Mapping[str, Any]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    keys = _gemma_respelled(keys)
    vocabulary = _vocabulary(keys)
    unknown = keys.get(f"{KEYS}unknown_token_id")
    given = keys.get(f"{KEYS}merges")
    merges = [tuple(merge.split(" ")) for merge in given] if given else _merges_of(vocabulary, keys[f"{KEYS}scores"])
    name = None if unknown is None else keys[f"{KEYS}tokens"][unknown]
    bpe = models.BPE(vocab=vocabulary, merges=merges, unk_token=name, fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(bpe)
    prefix = keys.get(f"{KEYS}add_space_prefix", True)
    spaces = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _gemma_respelled(keys: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the keys with tokens of spaces as SentencePiece writes them, and Gemma's order of merging as scores.

    llama.cpp's converter writes Gemma's tokens of several spaces as spaces, and scores that are not their order.
    """
    if not str(keys.get("general.architecture", "")).startswith("gemma") or f"{KEYS}merges" in keys:
        return keys
    tokens = [SPACE * len(token) if token and not token.strip(" ") else token for token in keys[f"{KEYS}tokens"]]
    return {**keys, f"{KEYS}tokens": tokens, f"{KEYS}scores": [-float(number) for number in range(len(tokens))]}


def _vocabulary(keys: Mapping[str, Any]) -> dict[str, int]:
    types = keys.get(f"{KEYS}token_type") or []
    unused = {number for number, kind in enumerate(types) if kind == UNUSED}
    return {token: number for number, token in enumerate(keys[f"{KEYS}tokens"]) if number not in unused}


def _merges_of(vocabulary: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Return the merges that SentencePiece's scores stand for: every way to join two tokens to a third, best first."""
    found = []
    for token, number in vocabulary.items():
        ways = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        whole = [(left, right) for left, right in ways if left in vocabulary and right in vocabulary]
        found += [(-scores[number], vocabulary[left], vocabulary[right], left, right) for left, right in whole]
    return [(left, right) for *_, left, right in sorted(found)]


def _add_whole_tokens(backend: Any, tokens: list[str], types: Iterable[int]) -> None:
    """Tell the tokenizer which tokens are matched whole in a text: control tokens, and those that users defined."""
    from tokenizers import AddedToken

    pairs = list(zip(tokens, types, strict=False))
    control = [AddedToken(token, normalized=False, special=True) for token, kind in pairs if kind in (CONTROL, UNKNOWN)]
    plain = [AddedToken(token, normalized=False, special=False) for token, kind in pairs if kind == USER_DEFINED]
    backend.add_special_tokens(control)
    backend.add_tokens(plain)


def _add_ends(backend: Any, keys: Mapping[str, Any], special: dict[str, str], ids: dict[str, Any]) -> None:
    """Put the tokens at a text's begin and end that the file asks for."""
    from tokenizers.processors import TemplateProcessing

    cuts = (*WHOLE_WORDS, *SAME_CUTS["llama-bpe"])
    by_default = keys[f"{KEYS}model"] == "llama" or keys.get(f"{KEYS}pre") in cuts  # llama.cpp's rule, for old files
    wanted = {"bos_token": keys.get(f"{KEYS}add_bos_token", by_default), "eos_token": keys.get(f"{KEYS}add_eos_token")}
    used = {name: special[name] for name, asked in wanted.items() if asked and name in special}
    if not used:
        return
    begin, end = (f"{used[name]} " if name in used else "" for name in ("bos_token", "eos_token"))
    backend.post_processor = TemplateProcessing(
        single=f"{begin}$A {end}".strip(),
        pair=f"{begin}$A {end}{begin}$B {end}".strip(),
        special_tokens=[(token, ids[name]) for name, token in used.items()],
    )
