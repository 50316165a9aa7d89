"""Answers of servers in the OpenAI protocol: checked as data from outside, and read into rollouts and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pangu_modules.common.masking import mask_secrets
from pangu_modules.llm.generation.records import FinishReason, Rollout, SequenceScores

QUOTED = 300
"""Characters of a server's answer that an error repeats."""


class ServerError(ConnectionError):
    """A request has no usable answer, for good.

    Attributes:
        everywhere: whether other requests would fare no better, e.g. because the server is gone.
    """

    def __init__(self, message: str, *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


class BrokenAnswerError(ValueError):
    """A body is no JSON: it was cut off, or something else than the server wrote it. Asking again may help."""


Token = Annotated[int, Field(ge=0, lt=2**31)]
Nats = Annotated[float, Field(le=1e-3, allow_inf_nan=False)]  # rounding may put certainty a little above 0


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class _TextLogprobs(_Answer):
    token_logprobs: list[Nats]


class _TokenLogprob(_Answer):
    logprob: Nats


class _ChatLogprobs(_Answer):
    content: list[_TokenLogprob] | None = None


class _Ranked(_Answer):
    logprob: Nats
    rank: int | None = None


class _Choice(_Answer):
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[Token] | None = None
    prompt_token_ids: list[Token] | None = None


class _TextChoice(_Choice):
    text: str
    logprobs: _TextLogprobs | None = None
    prompt_logprobs: list[dict[Token, _Ranked] | None] | None = None


class _Message(_Answer):
    content: str | None = None


class _ChatChoice(_Choice):
    message: _Message
    logprobs: _ChatLogprobs | None = None


class TextAnswer(_Answer):
    """What ``/completions`` answers."""

    choices: list[_TextChoice] = Field(min_length=1, max_length=1)


class ChatAnswer(_Answer):
    """What ``/chat/completions`` answers."""

    choices: list[_ChatChoice] = Field(min_length=1, max_length=1)
    prompt_token_ids: list[Token] | None = None


class _ServedModel(_Answer):
    id: str
    owned_by: str | None = None


class ModelsAnswer(_Answer):
    """What ``/models`` answers."""

    data: list[_ServedModel]


AnyAnswer = TypeVar("AnyAnswer", bound=_Answer)


def read_answer(kind: type[AnyAnswer], body: bytes) -> AnyAnswer:
    """Return a body as the kind of answer that was asked for.

    Raises:
        BrokenAnswerError: it is no JSON.
        ServerError: it is JSON of another shape; asking again gives the same.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        if problem["type"] == "json_invalid":
            raise BrokenAnswerError from None
        where = quote(".".join(str(part) for part in problem["loc"]).encode()).strip("'")
        raise ServerError(f"answered not as agreed ({where}: {problem['msg']})") from None


def quote(body: bytes, secret: str = "") -> str:
    """Return the beginning of a server's words on one line, without control characters and secrets."""
    text = " ".join(body[: 20 * QUOTED].decode(errors="replace").split())
    text = mask_secrets(text.replace(secret, "***") if secret else text)
    return repr(text if len(text) <= QUOTED else f"{text[:QUOTED]}...")


@dataclass(frozen=True)
class Asked:
    """What a completion was asked for, which its answer is checked against.

    Attributes:
        is_chat: whether the prompt was a conversation.
        prompt_ids: where the prompt was given as tokens.
        max_new_tokens: at most.
        stop: texts that end it.
        sampling: "model" from the model's own distribution; "likeliest" token, with probability 1; "limited" by a
            temperature, top-k or top-p, after which servers tell no probabilities.
    """

    is_chat: bool
    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    stop: tuple[str, ...]
    sampling: Literal["model", "likeliest", "limited"]


def read_completion(body: bytes, asked: Asked) -> Rollout:
    """Return a completion without its seed and names.

    Raises:
        BrokenAnswerError: the body is no JSON.
        ServerError: it holds no completion, or one that contradicts what was asked for.
    """
    choice: Any
    if asked.is_chat:
        answer = read_answer(ChatAnswer, body)
        choice, text, prompt_ids = answer.choices[0], answer.choices[0].message.content, answer.prompt_token_ids
        listed = None if choice.logprobs is None else choice.logprobs.content
        logprobs = None if listed is None else [token.logprob for token in listed]
    else:
        choice = read_answer(TextAnswer, body).choices[0]
        text, prompt_ids = choice.text, choice.prompt_token_ids
        logprobs = None if choice.logprobs is None else choice.logprobs.token_logprobs
    if text is None:
        raise ServerError("gave no text")
    text, finish_reason = _ended(choice, text, asked.stop)
    token_ids = tuple(choice.token_ids or ())
    _check_lengths(token_ids, None if choice.token_ids is None else logprobs, prompt_ids, asked)
    kept = tuple(logprobs) if logprobs is not None and choice.token_ids is not None else None
    sampled = None if kept is None else {"model": kept, "likeliest": (0.0,) * len(kept)}.get(asked.sampling)
    return Rollout(
        text=text,
        finish_reason=finish_reason,
        prompt_ids=asked.prompt_ids or tuple(prompt_ids or ()),
        token_ids=token_ids,
        policy_mask=(True,) * len(token_ids),
        logprobs=kept,
        sampled_logprobs=sampled,
    )


def _ended(choice: _Choice, text: str, stop: Sequence[str]) -> tuple[str, FinishReason]:
    """Return the text without the stop string that ended it, and why it ended."""
    if choice.finish_reason not in ("stop", "length"):
        reason = "null" if choice.finish_reason is None else quote(choice.finish_reason.encode())
        raise ServerError(f"ended a completion with finish_reason {reason}")
    # vLLM names the stop string and leaves it out; others leave it at the end, or leave it out and say no more.
    if isinstance(choice.stop_reason, str):
        return text, "stop_string"
    found = min((position for position in map(text.find, stop) if position >= 0), default=None)
    if found is not None:
        return text[:found], "stop_string"
    return text, "stop" if choice.finish_reason == "stop" else "length"


def _check_lengths(
    token_ids: Sequence[int], logprobs: Sequence[float] | None, prompt_ids: Sequence[int] | None, asked: Asked
) -> None:
    if len(token_ids) > asked.max_new_tokens:
        raise ServerError(f"gave {len(token_ids)} tokens, asked for max_new_tokens={asked.max_new_tokens} at most")
    if logprobs is not None and len(logprobs) != len(token_ids):
        raise ServerError(f"gave {len(token_ids)} tokens with {len(logprobs)} log-probabilities")
    if asked.prompt_ids and prompt_ids is not None and tuple(prompt_ids) != asked.prompt_ids:
        raise ServerError("continued other tokens than those of the prompt")


def read_scores(body: bytes, sequence: Sequence[int], top_k: int) -> SequenceScores:
    """Return the log-probabilities of a sequence that a server gives for its prompt, as vLLM does.

    Raises:
        BrokenAnswerError: the body is no JSON.
        ServerError: it has no log-probabilities of the prompt, or those of something else.
    """
    rows = read_answer(TextAnswer, body).choices[0].prompt_logprobs
    if rows is None:
        raise ServerError("gave no log-probabilities of the prompt (prompt_logprobs)")
    if len(rows) != len(sequence):
        raise ServerError(f"gave log-probabilities of {len(rows)} tokens for a sequence of {len(sequence)}")
    length = len(sequence) - 1
    own = np.zeros(length, np.float32)
    ids, values = np.zeros((length, top_k), np.int32), np.zeros((length, top_k), np.float32)
    for place, (token, row) in enumerate(zip(sequence[1:], rows[1:], strict=True)):
        if row is None or token not in row or len(row) < top_k:
            raise ServerError(f"gave no log-probability of token {place + 1}, or fewer than top_k={top_k} others")
        own[place] = row[token].logprob
        # The sequence's own token is listed too; among equals the server's rank decides.
        best = sorted(row.items(), key=lambda entry: (-entry[1].logprob, entry[1].rank or 0))[:top_k]
        ids[place] = [number for number, _ in best]
        values[place] = [entry.logprob for _, entry in best]
    return SequenceScores(own, ids, values)
