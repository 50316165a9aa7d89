"""Completions and scores from a server in the OpenAI protocol (vLLM, vllm-ascend, llama.cpp, transformers serve, ...).

vLLM's additions to the protocol are used where a server has them: the tokens themselves, and log-probabilities of an
answer and of a prompt. A text is never cut into tokens again: other tokens may have been sampled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pangu_modules.llm.generation.asking import ask_each, run
from pangu_modules.llm.generation.prompts import Prompt
from pangu_modules.llm.generation.records import IncompleteGenerationError, Rollout, SequenceScores, sample_seed
from pangu_modules.llm.generation.server_answers import Asked, ServerError, quote, read_completion, read_scores
from pangu_modules.llm.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from pangu_modules.llm.generation.client import ServerClient

ANSWER_BYTES = 1 << 20
"""Longest answer without what grows with its tokens."""
TOKEN_BYTES = 4096
"""Longest entry of one token in an answer: its number, text, bytes and log-probability, several times over."""
PROMPT_BYTES = 64
"""Longest repetition of a prompt's character or token."""
OWN_DEFAULTS = {"min_p": 0.0, "repetition_penalty": 1.0}
"""vLLM otherwise takes these from the model's folder, and samples from another distribution than was asked for."""


def complete_on_server(
    config: GenerationSettings, prompts: Sequence[Prompt], seed: int, samples: int, first_sample: int
) -> list[Rollout]:
    """Return `samples` completions of each prompt, those of the first prompt first.

    Each is a request of its own with a seed of its own, of which up to ``config.batch_size`` are under way at the same
    time: among the ``n`` answers to one request, a sample would depend on how many are asked for. (Servers that keep
    the prompts they have read, as vLLM does, still read a prompt once.) Texts and token ids go to ``/completions``,
    conversations to ``/chat/completions``. Where a server does not say which, a stop string counts as "stop".

    Args:
        config: address, and how to choose tokens.
        prompts: texts, token ids or conversations.
        seed: of the sampling.
        samples: of each prompt.
        first_sample: number of the first.

    Raises:
        ValueError: a prompt is empty or no text, or the server's key is missing.
        IncompleteGenerationError: some completions are missing; it holds the others.
        ConnectionError: there is no server or no such model, it lacks what the configuration needs, or all failed.
    """
    for number, prompt in enumerate(prompts):
        _check(prompt, number)
    return run(lambda: _complete(config, prompts, seed, range(first_sample, first_sample + samples)))


def score_on_server(config: GenerationSettings, sequences: Sequence[Sequence[int]], top_k: int) -> list[SequenceScores]:
    """Return the log-probabilities of sequences of tokens, from a server that gives those of a prompt, as vLLM does.

    Args:
        config: address of the server.
        sequences: token ids; with one new token each has to fit into the model's context.
        top_k: number of the likeliest tokens at each place; vLLM allows as many as its ``--max-logprobs``.

    Raises:
        ValueError: a sequence is empty, or the server's key is missing.
        ConnectionError: a sequence has no scores, or the server gives none; the first is asked for before the others.
    """
    for number, sequence in enumerate(sequences):
        if not len(sequence):
            raise ValueError(f"sequence {number} is empty: a model can only score one token or more")
    return run(lambda: _score(config, sequences, top_k))


async def _complete(config: GenerationSettings, prompts: Sequence[Prompt], seed: int, samples: range) -> list[Rollout]:
    from pangu_modules.llm.generation.client import ServerClient

    jobs = [(prompt, sample) for prompt in prompts for sample in samples]
    if not jobs:
        return []
    async with ServerClient(config) as client:
        has_tokens = await _meet(client)
        if config.logprobs or config.stop_token_ids:
            await _show_tokens(client, prompts[0])
            has_tokens = True

        async def complete(number: int) -> Rollout:
            prompt, sample = jobs[number]
            question = _question(config, prompt, has_tokens) | {"seed": _seed(seed, prompt, sample)}
            return replace(await _ask(client, prompt, question), seed=seed, sample=sample, model=str(config.model))

        rollouts, failures = await ask_each(len(jobs), config.batch_size, complete, f"answers of {config.model}")
    if len(failures) == len(jobs):
        raise ConnectionError(next(iter(failures.values())))
    if failures:
        raise IncompleteGenerationError(rollouts, failures)
    return [rollout for rollout in rollouts if rollout is not None]


async def _score(config: GenerationSettings, sequences: Sequence[Sequence[int]], top_k: int) -> list[SequenceScores]:
    from pangu_modules.llm.generation.client import ServerClient

    async def score(number: int) -> SequenceScores:
        sequence = [int(token) for token in sequences[number]]
        question = {"model": config.model, "prompt": sequence, "max_tokens": 1, "prompt_logprobs": top_k}
        limit = ANSWER_BYTES + TOKEN_BYTES * len(sequence) * (top_k + 2)
        return await client.ask("completions", question, limit, lambda body: read_scores(body, sequence, top_k))

    async with ServerClient(config) as client:
        await _meet(client)
        try:
            first = [await score(0)] if sequences else []
        except ServerError as error:
            raise ServerError(f"scoring needs a server that gives prompt_logprobs, such as vLLM: {error}") from None
        rest, failures = await ask_each(
            len(sequences) - len(first),
            config.batch_size,
            lambda number: score(number + 1),
            f"scores of {config.model}",
        )
    for number, reason in failures.items():
        raise ConnectionError(f"{len(failures)} of {len(sequences)} sequences have no scores; {number + 1}: {reason}")
    return first + [scores for scores in rest if scores is not None]


async def _meet(client: ServerClient) -> bool:
    """Return whether the server says that it is vLLM; refuse one that is absent, or a vLLM without the model."""
    models = await client.models() or {}
    is_vllm = bool(models) and all(owner == "vllm" for owner in models.values())
    if is_vllm and client.config.model not in models:
        offered = quote(", ".join(models).encode())
        raise ServerError(
            f"{client.base_url} has no model {client.config.model!r}; set model to one that it offers: {offered}"
        )
    return is_vllm


async def _show_tokens(client: ServerClient, prompt: Prompt) -> None:
    """Refuse a server that does not give tokens, and log-probabilities if wanted, in one short answer.

    It has to show them: some servers refuse what they do not know, others ignore it.
    """
    config = client.config
    short: Prompt = "a" if isinstance(prompt, str) else [{"role": "user", "content": "a"}]
    if not isinstance(prompt, str) and not _is_conversation(prompt):
        short = prompt[:1]  # type: ignore[assignment]
    name = "logprobs" if config.logprobs else "stop_token_ids"
    need = f"{name}={getattr(config, name)!r} needs a server that gives tokens"
    try:
        rollout = await _ask(client, short, _question(config, short, True) | {"max_tokens": 1})
    except ServerError as error:
        if error.everywhere:
            raise
        raise ServerError(f"{need}, such as vLLM, or leave {name} out: {error}") from None
    missing = "token_ids" if not rollout.token_ids else "logprobs" if config.logprobs and not rollout.logprobs else ""
    if missing:
        raise ServerError(
            f"{need}, such as vLLM, or leave {name} out: {client.base_url} answered without {missing}, "
            f"only {quote(rollout.text.encode())}"
        )


async def _ask(client: ServerClient, prompt: Prompt, question: dict[str, Any]) -> Rollout:
    config = client.config
    is_chat = _is_conversation(prompt)
    is_likeliest = config.temperature == 0
    is_model = config.temperature == 1 and config.top_p == 1 and config.top_k == 0
    asked = Asked(
        prompt_ids=() if is_chat or isinstance(prompt, str) else tuple(question["prompt"]),
        max_new_tokens=question["max_tokens"],
        stop=config.stop,
        sampling="likeliest" if is_likeliest else "model" if is_model else "limited",
    )
    size = sum(len(message["content"]) for message in prompt) if is_chat else len(prompt)  # type: ignore[call-overload]
    limit = ANSWER_BYTES + TOKEN_BYTES * asked.max_new_tokens + PROMPT_BYTES * size
    path = "chat/completions" if is_chat else "completions"
    return await client.ask(path, question, limit, lambda body: read_completion(body, is_chat, asked))


def _question(config: GenerationSettings, prompt: Prompt, has_tokens: bool) -> dict[str, Any]:
    """Return what is asked for a completion, but for its seed; `has_tokens` adds what only vLLM's protocol has."""
    is_chat = _is_conversation(prompt)
    question: dict[str, Any] = {
        "model": config.model,
        "max_tokens": config.max_new_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        ("messages" if is_chat else "prompt"): prompt,
    }
    if is_chat:
        question["messages"] = [dict(message) for message in prompt]  # type: ignore[call-overload]
    elif not isinstance(prompt, str):
        question["prompt"] = [int(token) for token in prompt]  # type: ignore[call-overload]
    if config.stop:
        question["stop"] = list(config.stop)
    if config.top_k or has_tokens:
        question["top_k"] = config.top_k  # beyond OpenAI's own interface, but vLLM and llama.cpp have it
    if has_tokens:
        question |= {"return_token_ids": True, **OWN_DEFAULTS}
        if config.stop_token_ids:
            question["stop_token_ids"] = list(config.stop_token_ids)
    if config.logprobs:
        question |= {"logprobs": True, "top_logprobs": 0} if is_chat else {"logprobs": 0}
    return question


def _is_conversation(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and isinstance(prompt[0], Mapping)


def _seed(seed: int, prompt: Prompt, sample: int) -> int:
    """Return the seed of one request: 31 bits of `sample_seed`, for servers read it as a signed number of 32."""
    content = json.dumps([dict(message) for message in prompt]) if _is_conversation(prompt) else prompt  # type: ignore[call-overload]
    return sample_seed(seed, content, sample) % 2**31  # type: ignore[arg-type]


def _check(prompt: Prompt, number: int) -> None:
    if not len(prompt):
        raise ValueError(f"prompt {number} is empty: a model can only continue one token or more")
    texts = [prompt] if isinstance(prompt, str) else [turn["content"] for turn in prompt if isinstance(turn, Mapping)]
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"prompt {number} holds half a character (a lone surrogate): it is no text") from None
