"""What a server is asked: prompts and settings in the words of the OpenAI protocol, and of vLLM's additions to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pangu_modules.llm.generation.prompts import Message, Prompt
from pangu_modules.llm.generation.records import sample_seed
from pangu_modules.llm.generation.server.answers import Asked
from pangu_modules.llm.generation.settings import GenerationSettings

OWN_DEFAULTS = {"min_p": 0.0, "repetition_penalty": 1.0}
"""vLLM otherwise takes these from the model's folder, and samples from another distribution than was asked for."""
ANSWER_BYTES = 1 << 20
"""Longest answer without what grows with its tokens."""
TOKEN_BYTES = 4096
"""Longest entry of one token in an answer: its number, text, bytes and log-probability, several times over."""
PROMPT_BYTES = 64
"""Longest repetition of a prompt's character or token."""


@dataclass(frozen=True)
class ServerPrompt:
    """A prompt as a server takes it.

    Attributes:
        content: a text, token ids, or messages.
        is_chat: whether it is messages, which have a path of their own.
    """

    content: str | list[int] | list[dict[str, str]]
    is_chat: bool = False

    @property
    def path(self) -> str:
        """Where it is asked, below the server's address."""
        return "chat/completions" if self.is_chat else "completions"

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Its tokens, if it was given as tokens."""
        return () if self.is_chat or isinstance(self.content, str) else tuple(cast(list[int], self.content))

    @property
    def short(self) -> ServerPrompt:
        """A prompt of the same kind that fits into every context."""
        if self.is_chat:
            return ServerPrompt([{"role": "user", "content": "a"}], is_chat=True)
        return ServerPrompt("a" if isinstance(self.content, str) else self.content[:1])

    @property
    def _text(self) -> str:
        return self.content if isinstance(self.content, str) else json.dumps(self.content, ensure_ascii=False)

    def seed(self, seed: int, sample: int) -> int:
        """Return the seed of one request: 31 bits of `sample_seed`, for servers read it as a signed number of 32."""
        return sample_seed(seed, self.token_ids or self._text, sample) % 2**31

    def longest_answer(self, max_new_tokens: int) -> int:
        """Return the bytes that an answer of so many tokens may have."""
        return ANSWER_BYTES + TOKEN_BYTES * max_new_tokens + PROMPT_BYTES * len(self._text)


def server_prompt(prompt: Prompt, number: int) -> ServerPrompt:
    """Return a prompt as a server takes it; `number` names it in errors.

    Raises:
        ValueError: it is empty, or no text.
    """
    if not len(prompt):
        raise ValueError(f"prompt {number} is empty: a model can only continue one token or more")
    if isinstance(prompt, str):
        found = ServerPrompt(prompt)
    elif isinstance(prompt[0], Mapping):
        found = ServerPrompt([dict(message) for message in cast(Sequence[Message], prompt)], is_chat=True)
    else:
        return ServerPrompt([int(token) for token in cast(Sequence[int], prompt)])
    try:
        found._text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"prompt {number} holds half a character (a lone surrogate): it is no text") from None
    return found


def question_of(config: GenerationSettings, prompt: ServerPrompt, has_tokens: bool) -> dict[str, Any]:
    """Return what is asked for a completion, but for its seed; `has_tokens` adds what only vLLM's protocol has."""
    question: dict[str, Any] = {
        "model": config.model,
        "max_tokens": config.max_new_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        ("messages" if prompt.is_chat else "prompt"): prompt.content,
    }
    if config.stop:
        question["stop"] = list(config.stop)
    if config.top_k or has_tokens:
        question["top_k"] = config.top_k  # beyond OpenAI's own interface, but vLLM and llama.cpp have it
    if has_tokens:
        question |= {"return_token_ids": True, **OWN_DEFAULTS}
        if config.stop_token_ids:
            question["stop_token_ids"] = list(config.stop_token_ids)
    if config.logprobs:
        question |= {"logprobs": True, "top_logprobs": 0} if prompt.is_chat else {"logprobs": 0}
    return question


def asked_for(config: GenerationSettings, prompt: ServerPrompt, max_new_tokens: int) -> Asked:
    """Return what the answer is checked against."""
    is_limited = config.temperature != 1 or config.top_p != 1 or config.top_k != 0
    return Asked(
        is_chat=prompt.is_chat,
        prompt_ids=prompt.token_ids,
        max_new_tokens=max_new_tokens,
        stop=config.stop,
        sampling="likeliest" if config.temperature == 0 else "limited" if is_limited else "model",
    )


def scores_question(config: GenerationSettings, sequence: Sequence[int], top_k: int) -> tuple[dict[str, Any], int]:
    """Return what is asked for the scores of a sequence, and the bytes that the answer may have."""
    tokens = [int(token) for token in sequence]
    question = {"model": config.model, "prompt": tokens, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": top_k}
    return question, ANSWER_BYTES + TOKEN_BYTES * len(tokens) * (top_k + 2)
