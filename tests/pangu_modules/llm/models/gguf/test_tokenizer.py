"""Tokenizers written as GGUF's keys and read back: the same ids, whole tokens, ends, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from pangu_modules.llm.causal_lm import CausalLM
from pangu_modules.llm.export.gguf_vocabulary import PROBES, vocabulary_keys
from pangu_modules.llm.models.gguf.tokenizer import PRE_TOKENIZERS, WHOLE_WORDS, tokenizer_of

TEXTS = [
    "the river runs past the old mill and the miller counts his sacks of grain",
    "It's 2024-05-17, don't   worry; I'LL pay 1000000 for 13 naïve cafés\n\n  ok\t привет 你好 def f(x): return x[0]",
] * 20
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(steps: tuple[str, ...], whole_words: bool = False) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE that cuts text as `steps` say, with a token of begin."""
    backend = Tokenizer(models.BPE(ignore_merges=whole_words))
    if len(steps) == 1:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        digits = steps[0] == "Digits"
        first = pre_tokenizers.Digits(True) if digits else pre_tokenizers.Split(Regex(steps[0]), "isolated")
        second = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=digits)
        backend.pre_tokenizer = pre_tokenizers.Sequence([first, second])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options: dict[str, Any] = {"special_tokens": ["<eos>"], "initial_alphabet": alphabet, "show_progress": False}
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, **options))
    backend.add_special_tokens(["<bos>"])
    backend.add_tokens(["<think>"])
    ends = [("<bos>", backend.token_to_id("<bos>"))]
    backend.post_processor = TemplateProcessing(single="<bos> $A", pair="<bos> $A $B", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")


def sentencepiece(prefix: bool, metaspace: str | None = None) -> PreTrainedTokenizerFast:
    """Return a BPE of SentencePiece's kind: spaces as U+2581, bytes as fallback."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁]+|▁+"), "isolated")
    special = ["<unk>", "<s>", "</s>", *BYTES]
    options: dict[str, Any] = {"special_tokens": special, "limit_alphabet": 60, "show_progress": False}
    trained.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=500, **options))
    learned = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    backend = Tokenizer(models.BPE(learned["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    if metaspace is not None:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=metaspace, split=False)
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def module_of(tokenizer: PreTrainedTokenizerFast, folder: Path, rows: int = 0) -> CausalLM:
    tokenizer.save_pretrained(folder)
    args = {"vocab_size": len(tokenizer) + rows, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CausalLM.Config(architecture="llama", model_args={**args, "intermediate_size": 8})
    module: CausalLM = config.build(tokenizer=str(folder))
    return module


def check_equal(own: Any, again: Any, texts: tuple[str, ...] = PROBES) -> None:
    for text in texts:
        ids = own(text)["input_ids"]
        assert again(text)["input_ids"] == ids, text
        assert again.decode(ids) == own.decode(ids)
    assert (again.bos_token_id, again.eos_token_id) == (own.bos_token_id, own.eos_token_id)


@pytest.mark.parametrize("steps", PRE_TOKENIZERS, ids=PRE_TOKENIZERS.values())
def test_byte_level_tokenizers_come_back(steps: tuple[str, ...], tmp_path: Path) -> None:
    """Llama 3's vocabulary too, whose every row is a token: nothing is added when it is read."""
    own = byte_level(steps, whole_words=PRE_TOKENIZERS[steps] in WHOLE_WORDS)
    keys = vocabulary_keys(module_of(own, tmp_path))
    assert keys["tokenizer.ggml.pre"] == PRE_TOKENIZERS[steps]
    again = tokenizer_of(keys)
    assert len(again) == len(own)
    check_equal(own, again, (*PROBES, "a<think>b <eos> c"))
    assert again("the")["input_ids"][0] == own.bos_token_id


def test_the_ways_to_cut_text_differ() -> None:
    """A reader that took one for the other would be seen by the texts that are compared."""
    cutters = [byte_level(steps).backend_tokenizer.pre_tokenizer for steps in PRE_TOKENIZERS]
    ways = {tuple(piece for text in PROBES for piece, _ in cutter.pre_tokenize_str(text)) for cutter in cutters}
    assert len(ways) == len(cutters)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_tokenizers_come_back_from_merges_and_from_scores(prefix: bool, tmp_path: Path) -> None:
    own = sentencepiece(prefix)
    keys = vocabulary_keys(module_of(own, tmp_path))
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    check_equal(own, tokenizer_of(keys))
    scored = {name: value for name, value in keys.items() if not name.endswith("merges")}
    check_equal(own, tokenizer_of(scored))


def test_a_space_that_transformers_sometimes_puts_is_said(tmp_path: Path) -> None:
    own = sentencepiece(True, metaspace="first")
    with pytest.warns(UserWarning, match="a text that begins with a space is cut differently"):
        keys = vocabulary_keys(module_of(own, tmp_path))
    check_equal(own, tokenizer_of(keys), tuple(text for text in PROBES if not text.startswith(" ")))


def test_rows_without_a_token_stay_without_one(tmp_path: Path) -> None:
    own = byte_level(("ByteLevel",))
    keys = vocabulary_keys(module_of(own, tmp_path, rows=3))
    assert keys["tokenizer.ggml.tokens"][-1] == f"[PAD{len(own) + 2}]"
    assert len(tokenizer_of(keys)) == len(own)


def test_llama_cpp_s_defaults_where_a_file_does_not_say_it(tmp_path: Path) -> None:
    llama3 = next(steps for steps, name in PRE_TOKENIZERS.items() if name == "llama-bpe")
    for own, begins in ((byte_level(llama3), True), (byte_level(("ByteLevel",)), False), (sentencepiece(True), True)):
        keys = vocabulary_keys(module_of(own, tmp_path))
        del keys["tokenizer.ggml.add_bos_token"]
        assert (tokenizer_of(keys)("the")["input_ids"][0] == own.bos_token_id) == begins


def test_a_tokenizer_that_gguf_would_change_is_refused(tmp_path: Path) -> None:
    own = byte_level(("ByteLevel",))
    own.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ValueError, match=r"GGUF cannot hold this tokenizer: it makes .* 'The quick"):
        vocabulary_keys(module_of(own, tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.pre": "viking"}, "cuts text as 'viking' does, which is unknown here"),
        ({"tokenizer.ggml.model": "t5"}, "of kind 't5', and only gpt2, llama are read"),
        ({"tokenizer.ggml.model": None}, "of kind None"),
    ],
)
def test_unknown_kinds_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    keys = vocabulary_keys(module_of(byte_level(("ByteLevel",)), tmp_path))
    with pytest.raises(ValueError, match=message):
        tokenizer_of({**keys, **changes})
