"""Labels of a conversation: which of the tokens that the chat template writes are the model's to learn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from datamodules.text.conversations import Message
from pangu_modules.common.batches import IGNORE_INDEX

Sample = dict[str, list[int]]
"""A tokenized conversation: ``input_ids`` and ``labels`` of equal length."""
QUESTION: list[Message] = [{"role": "user", "content": "a"}]
RESERVED = frozenset(
    [
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    ]
)
"""What transformers' `apply_chat_template` takes for itself or gives the template."""
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
NO_BEGINNING = (
    "it begins with the assistant, and the chat template shows no place where such an answer begins: put a message of "
    "the user or the system before it"
)
REWRITES = "the chat template rewrites earlier tokens around message {index}: cut the conversation after it"
CHECK_OF_TEMPLATE = "check the row's roles and their order, or give the tokenizer another chat template"


def chat_sample(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Sample:
    """Return a conversation's tokens and labels.

    Where the template marks answers with ``{% generation %}``, these are the labels. Otherwise an answer's label begins
    where the model starts to write it, and ends with what the template writes after it.

    Args:
        tokenizer: with a chat template.
        messages: each with ``role`` and ``content``.
        tools: JSON schemas of functions, for templates that write them.
        options: what else the template is told, by name.

    Raises:
        ValueError: there is no answer, no chat template, or a template that refuses the conversation, leaves out its
            tool calls, or changes earlier tokens when it goes on, so that its answers have no place of their own.
    """
    rendering = Rendering(tokenizer, tools, options)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise ValueError("it has no message with role 'assistant', so there is nothing to learn from it")
    sample = rendering.marked(messages) if rendering.marks else _by_prefixes(rendering, messages, answers)
    _check_tool_calls(rendering, messages, sample["input_ids"])
    return sample


class Rendering:
    """Tokens that a tokenizer's chat template makes of messages; its errors become ValueErrors.

    Args:
        tokenizer: with a chat template.
        tools: JSON schemas of functions, or None.
        options: what else the template is told, by name.

    Raises:
        ValueError: the tokenizer has no chat template.
    """

    def __init__(
        self, tokenizer: Any, tools: Sequence[Any] | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        template = getattr(tokenizer, "chat_template", None)
        if template is None:
            raise ValueError("the tokenizer has no chat template: name the tokenizer of a chat model")
        self.tokenizer = tokenizer
        self.options: dict[str, Any] = {**(options or {}), **({"tools": list(tools)} if tools else {})}
        if isinstance(template, dict):  # several templates by name: transformers chooses
            template = tokenizer.get_chat_template(None, self.options.get("tools"))
        self.fast = bool(getattr(tokenizer, "is_fast", False))  # it knows where in the text a token stands
        self.marks = self.fast and bool(GENERATION.search(template))

    def tokens(self, messages: Sequence[Message], begin_answer: bool) -> list[int]:
        """Return the tokens of `messages`, and with `begin_answer` those that begin an answer after them."""
        rendered: list[int] = self._applied(messages, add_generation_prompt=begin_answer, return_dict=False)
        return rendered

    def text(self, messages: Sequence[Message], begin_answer: bool) -> str:
        """Return what `tokens` are made of."""
        rendered: str = self._applied(messages, add_generation_prompt=begin_answer, tokenize=False)
        return rendered

    def marked(self, messages: Sequence[Message]) -> Sample:
        """Return tokens, and as labels those that the template marks."""
        rendered = self._applied(
            messages, add_generation_prompt=False, return_dict=True, return_assistant_tokens_mask=True
        )
        input_ids, mask = list(rendered["input_ids"]), rendered["assistant_masks"]
        if not any(mask):
            raise ValueError("the chat template marks none of its answers with {% generation %}")
        labels = [token if marked else IGNORE_INDEX for token, marked in zip(input_ids, mask, strict=True)]
        return {"input_ids": input_ids, "labels": labels}

    def opening(self) -> list[int]:
        """Return the tokens with which the template begins an answer."""
        return self.tokens(QUESTION, True)[len(self.tokens(QUESTION, False)) :]

    def opening_text(self) -> str:
        """Return the text with which the template begins an answer."""
        return self.text(QUESTION, True)[len(self.text(QUESTION, False)) :]

    def _applied(self, messages: Sequence[Message], **options: Any) -> Any:
        try:
            return self.tokenizer.apply_chat_template(list(messages), **{"tokenize": True, **options, **self.options})
        except Exception as error:  # a template is a program: it raises what it likes
            raise ValueError(f"the chat template refuses it: {error}; {CHECK_OF_TEMPLATE}") from error


def _by_prefixes(rendering: Rendering, messages: Sequence[Message], answers: Sequence[int]) -> Sample:
    """Return tokens and labels; an answer is what the conversation up to it has more than the one before it."""
    input_ids = rendering.tokens(messages, False)
    labels = [IGNORE_INDEX] * len(input_ids)
    for index in answers:
        after = rendering.tokens(messages[: index + 1], False)
        before = rendering.tokens(messages[:index], True) if index else _opened(after, rendering.opening())
        if before is None or after[: len(before)] != before or input_ids[: len(after)] != after:
            if rendering.fast:
                return _by_text(rendering, messages, answers)
            raise ValueError(NO_BEGINNING if before is None else REWRITES.format(index=index))
        labels[len(before) : len(after)] = after[len(before) :]
    return {"input_ids": input_ids, "labels": labels}


def _by_text(rendering: Rendering, messages: Sequence[Message], answers: Sequence[int]) -> Sample:
    """Return tokens and labels by where answers stand in the text: a token may reach over the start of an answer.

    So it is where an answer begins with a line break, which becomes one token with that of the template.
    """
    text = rendering.text(messages, False)
    encoded = rendering.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    labels = [IGNORE_INDEX] * len(encoded["input_ids"])
    for index in answers:
        after = rendering.text(messages[: index + 1], False)
        before = rendering.text(messages[:index], True) if index else _opened(after, rendering.opening_text())
        if before is None:
            raise ValueError(NO_BEGINNING)
        if not (text.startswith(after) and after.startswith(before)):
            raise ValueError(REWRITES.format(index=index))
        for position, (start, end) in enumerate(encoded["offset_mapping"]):
            if start < len(after) and end > len(before):
                labels[position] = encoded["input_ids"][position]
    return {"input_ids": list(encoded["input_ids"]), "labels": labels}


def _opened(after: Any, opening: Any) -> Any:
    """Return what stands before an answer that begins a conversation, None if `opening` does not occur.

    A template need not be asked for it: most fail at a conversation without a message.

    Args:
        after: the conversation's tokens or text up to the end of that answer.
        opening: the tokens or text with which the template begins an answer.
    """
    for start in range(len(after) - len(opening) + 1):
        if opening and after[start : start + len(opening)] == opening:
            return after[: start + len(opening)]
    return None


def _check_tool_calls(rendering: Rendering, messages: Sequence[Message], input_ids: list[int]) -> None:
    """Refuse a template that leaves out tool calls: the model would learn to answer nothing."""
    for index, message in enumerate(messages):
        if message.get("tool_calls"):
            silent = {**message, "content": message.get("content") or ""}
            del silent["tool_calls"]
            if rendering.tokens([*messages[:index], silent, *messages[index + 1 :]], False) == input_ids:
                raise ValueError(
                    f"the chat template leaves out the tool calls of message {index}: take the tokenizer of a model "
                    "that calls tools"
                )
