"""What goes into generation: texts, tokens and conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pangu_modules.common.batches import IGNORE_INDEX
from pangu_modules.llm.generation.records import Rollout

Message = Mapping[str, str]
"""One turn of a conversation: ``role`` and ``content``."""

Prompt = str | Sequence[int] | Sequence[Message]
"""A text, its tokens, or a conversation: messages with ``role`` and ``content``, through the chat template."""


def chat_tokens(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the tokens of a conversation up to where the assistant answers.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError("the tokenizer has no chat template: give prompts as text, or a tokenizer of a chat model")
    tokens: list[int] = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
    return tokens


def prompts_of(batch: Mapping[str, Any]) -> list[list[int]]:
    """Return the prompts of a batch: the tokens before the first label, or all of them where labels leave none.

    Padding, which the attention mask hides, is on the right.
    """
    prompts = []
    mask = batch.get("attention_mask")
    for row, input_ids in enumerate(batch["input_ids"].tolist()):
        length = len(input_ids) if mask is None else int(mask[row].sum())
        labels = batch["labels"][row].tolist() if "labels" in batch else input_ids
        start = next((position for position, label in enumerate(labels) if label != IGNORE_INDEX), length)
        prompts.append(input_ids[: start or length])
    return prompts


def row_of(rollout: Rollout) -> dict[str, Any]:
    """Return what tables of predictions show of a completion."""
    return {name: getattr(rollout, name) for name in ("text", "token_ids", "finish_reason")}
