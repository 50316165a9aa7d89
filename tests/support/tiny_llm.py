"""A tiny random Llama, a tokenizer of words, and batches, for the tests of language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pangu_modules.llm.causal_lm import CausalLM

VOCABULARY = 128
TINY_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<s> {{ message['role'] }} {{ message['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)


def tiny_module(seed: int = 0, **fields: Any) -> CausalLM:
    torch.manual_seed(seed)
    model_args = {**TINY_LLAMA, **fields.pop("model_args", {})}
    tokenizer = fields.pop("data_tokenizer", None)
    config = CausalLM.Config(architecture="llama", model_args=model_args, **fields)
    return config.build(**({} if tokenizer is None else {"tokenizer": str(tokenizer)}))


def token_batch(batch: int = 3, seq: int = 10, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(3, VOCABULARY, (batch, seq), generator=generator)}


def word_tokenizer(folder: Path, words: int = 120) -> Path:
    """Save a tokenizer of whole words: <s>, </s>, <unk>, user, assistant, then w0, w1, ... (w0 has number 5)."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    names = ["<s>", "</s>", "<unk>", "user", "assistant", *(f"w{number}" for number in range(words))]
    tokenizer = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, **special)
    fast.save_pretrained(folder)
    return folder


def byte_tokenizer(folder: Path) -> Path:
    """Save a byte-level BPE tokenizer without merges: 256 bytes and two special tokens."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {name: number for number, name in enumerate(["<s>", "</s>", *alphabet, "he"])}
    tokenizer = Tokenizer(BPE(vocabulary, [("h", "e")]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(folder)
    return folder
