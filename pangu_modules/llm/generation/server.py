"""Completions from an OpenAI-compatible server (vLLM, vllm-ascend, llama.cpp, ...), with the standard library."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pangu_modules.llm.generation.prompts import Completion, Prompt
from pangu_modules.llm.generation.settings import GenerationSettings


def complete_on_server(config: GenerationSettings, prompts: Sequence[Prompt], seed: int) -> list[Completion]:
    """Return one completion for each prompt; up to ``config.batch_size`` requests are under way at the same time.

    Texts and token ids go to ``/completions``, conversations to ``/chat/completions``; prompt i has the seed
    ``seed + i``.

    Raises:
        ConnectionError: the server cannot be reached in time, or its answer is an error or not as agreed.
    """

    def complete(numbered: tuple[int, Prompt]) -> Completion:
        number, prompt = numbered
        return _complete(config, prompt, seed + number)

    with ThreadPoolExecutor(config.batch_size) as pool:
        return list(pool.map(complete, enumerate(prompts)))


def _complete(config: GenerationSettings, prompt: Prompt, seed: int) -> Completion:
    if not prompt:
        raise ValueError("a prompt is empty: a model can only continue one token or more")
    is_chat = not isinstance(prompt, str) and not isinstance(prompt[0], int)
    question = {
        "model": config.model,
        "max_tokens": config.max_new_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "seed": seed,
        ("messages" if is_chat else "prompt"): prompt if isinstance(prompt, str) else list(prompt),
    }
    if config.top_k:
        question["top_k"] = config.top_k  # beyond OpenAI's own interface, but vLLM and llama.cpp have it
    url = f"{str(config.base_url).rstrip('/')}/{'chat/completions' if is_chat else 'completions'}"
    answer = _post(url, question, config)
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"] if is_chat else choice["text"]
    except (KeyError, IndexError, TypeError) as error:
        raise ConnectionError(f"{url} gave no completion but {json.dumps(answer)[:300]}") from error
    return Completion(text or "", (), "stop" if choice.get("finish_reason") == "stop" else "length")


def _post(url: str, question: dict[str, Any], config: GenerationSettings) -> Any:
    headers = {"Content-Type": "application/json"}
    if config.api_key_variable is not None:
        if config.api_key_variable not in os.environ:
            raise ValueError(f"api_key_variable: there is no environment variable {config.api_key_variable!r}")
        headers["Authorization"] = f"Bearer {os.environ[config.api_key_variable]}"
    request = urllib.request.Request(url, json.dumps(question).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=config.timeout) as response:
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        body = error.read().decode(errors="replace")[:300]
        raise ConnectionError(
            f"{url} answered {error.code} {error.reason} for model {config.model!r}: {body}"
        ) from error
    except TimeoutError as error:
        raise ConnectionError(f"{url} did not answer within timeout={config.timeout} seconds") from error
    except urllib.error.URLError as error:
        raise ConnectionError(
            f"no server at base_url={config.base_url!r} ({error.reason}): start it, or leave base_url empty"
        ) from error
    except json.JSONDecodeError as error:
        raise ConnectionError(f"{url} answered with something that is not JSON: {error}") from error
