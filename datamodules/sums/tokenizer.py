"""The tokenizer of sums: 18 tokens, and a chat template that writes a question as the 11 tokens of a prompt.

It is a byte-level BPE without merges, so that GGUF can hold it.
"""

from __future__ import annotations

from pathlib import Path

from datamodules.sums.columns import TOKENS, Mode
from pangu_modules.common.cache import cached

NO_THINK = " /no_think"
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{% set fast = '/no_think' in message['content'] or (enable_thinking is defined and not enable_thinking) %}"
    "{{ bos_token + ('<fast>' if fast else '<slow>') + message['content'].split(' ')[0] + '=' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% endif %}"
    "{% endfor %}"
)


def question(operands: tuple[int, ...], mode: Mode) -> str:
    """Return a question as a user's message: ``12+34+05``, in fast mode with `` /no_think`` behind it."""
    return "+".join(f"{operand:02d}" for operand in operands) + (NO_THINK if mode == "fast" else "")


def tokenizer_folder() -> Path:
    """Return the tokenizer's transformers folder in the cache; the first use writes it."""
    return cached("sums-tokenizer-1", write_tokenizer)


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer into a folder."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = {token: number for number, token in enumerate(TOKENS) if len(token) == 1}
    bpe = Tokenizer(models.BPE(vocab=characters, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(token, special=True) for token in TOKENS if len(token) > 1])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=["<slow>", "<fast>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
