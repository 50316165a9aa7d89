"""Completions and scores from a server in the OpenAI protocol (vLLM, vllm-ascend, llama.cpp, transformers serve, ...).

vLLM's additions to the protocol are used where a server has them: the tokens themselves, and log-probabilities of an
answer and of a prompt. A text is never cut into tokens again: other tokens may have been sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pangu_modules.llm.generation.prompts import Prompt
from pangu_modules.llm.generation.records import IncompleteGenerationError, Rollout, SequenceScores
from pangu_modules.llm.generation.server.answers import ServerError, quote, read_completion, read_scores
from pangu_modules.llm.generation.server.asking import ask_each, run
from pangu_modules.llm.generation.server.questions import (
    ServerPrompt,
    asked_for,
    question_of,
    scores_question,
    server_prompt,
)
from pangu_modules.llm.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from pangu_modules.llm.generation.server.client import ServerClient


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
    asked = [server_prompt(prompt, number) for number, prompt in enumerate(prompts)]
    return run(lambda: _complete(config, asked, seed, range(first_sample, first_sample + samples)))


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


async def _complete(
    config: GenerationSettings, prompts: Sequence[ServerPrompt], seed: int, samples: range
) -> list[Rollout]:
    from pangu_modules.llm.generation.server.client import ServerClient

    jobs = [(prompt, sample) for prompt in prompts for sample in samples]
    if not jobs:
        return []
    async with ServerClient(config) as client:
        has_tokens = await _meet(client)
        if config.logprobs or config.stop_token_ids:
            await _show_tokens(client, prompts[0].short)
            has_tokens = True

        async def complete(number: int) -> Rollout:
            prompt, sample = jobs[number]
            question = question_of(config, prompt, has_tokens) | {"seed": prompt.seed(seed, sample)}
            return replace(await _ask(client, prompt, question), seed=seed, sample=sample, model=str(config.model))

        rollouts, failures = await ask_each(len(jobs), config.batch_size, complete, f"answers of {config.model}")
    if len(failures) == len(jobs):
        raise ConnectionError(next(iter(failures.values())))
    if failures:
        raise IncompleteGenerationError(rollouts, failures)
    return [rollout for rollout in rollouts if rollout is not None]


async def _score(config: GenerationSettings, sequences: Sequence[Sequence[int]], top_k: int) -> list[SequenceScores]:
    from pangu_modules.llm.generation.server.client import ServerClient

    async def score(number: int) -> SequenceScores:
        question, limit = scores_question(config, sequences[number], top_k)
        read = partial(read_scores, sequence=question["prompt"], top_k=top_k)
        return await client.ask("completions", question, limit, read)

    if not sequences:
        return []
    async with ServerClient(config) as client:
        await _meet(client)
        try:
            first = await score(0)
        except ServerError as error:
            if error.everywhere:
                raise
            raise ServerError(f"{error}; scoring needs a server that gives prompt_logprobs, such as vLLM") from None
        count, title = len(sequences) - 1, f"scores of {config.model}"
        rest, failures = await ask_each(count, config.batch_size, lambda number: score(number + 1), title)
    for number, reason in failures.items():
        raise ConnectionError(f"{len(failures)} of {len(sequences)} sequences have no scores; {number + 1}: {reason}")
    return [first, *(scores for scores in rest if scores is not None)]


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


async def _show_tokens(client: ServerClient, prompt: ServerPrompt) -> None:
    """Refuse a server that does not give tokens, and log-probabilities if wanted, in one short answer.

    It has to show them: some servers refuse what they do not know, others ignore it.
    """
    config = client.config
    name = "logprobs" if config.logprobs else "stop_token_ids"
    need = f"{name}={getattr(config, name)!r} needs a server that gives tokens, such as vLLM: take one, or leave it out"
    try:
        rollout = await _ask(client, prompt, question_of(config, prompt, True) | {"max_tokens": 1})
    except ServerError as error:
        if error.everywhere:
            raise
        raise ServerError(f"{error}; {need}") from None
    missing = "token_ids" if not rollout.token_ids else "logprobs" if config.logprobs and not rollout.logprobs else ""
    if missing:
        answer = quote(rollout.text.encode())
        raise ServerError(f"{client.base_url} answered without {missing}, only {answer}; {need}")


async def _ask(client: ServerClient, prompt: ServerPrompt, question: dict[str, Any]) -> Rollout:
    asked = asked_for(client.config, prompt, question["max_tokens"])
    limit = prompt.longest_answer(asked.max_new_tokens)
    return await client.ask(prompt.path, question, limit, partial(read_completion, asked=asked))
