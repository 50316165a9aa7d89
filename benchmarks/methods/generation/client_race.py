"""The race of clients: ours, which tries again and checks, against a bare concurrent loop of httpx on one server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.races.race import Contest, Race, timed

PROMPTS = 400
WIDTH = 16
"""Requests under way at the same time."""
DELAY = 0.05
"""Seconds that the server waits before each answer, as a small model on a fast machine takes for a few tokens."""
TARGET = 1 / 1.05
SETUP = (
    f"Client: {PROMPTS} prompts, {WIDTH} requests under way, to a server in a process of its own that answers each "
    f"after {1000 * DELAY:.0f} ms; the peer is httpx.AsyncClient under a semaphore, without further tries and checks."
)


def contests(prompts: int = PROMPTS, width: int = WIDTH, delay: float = DELAY) -> Iterator[Contest]:
    """Yield the contest; the server lives until the next one is asked for."""
    texts = [f"prompt {number}" for number in range(prompts)]
    with stub_server(delay) as base_url:

        def check() -> tuple[float, float]:
            unequal = sum(
                a != b for a, b in zip(ours(base_url, texts, width), bare(base_url, texts, width), strict=True)
            )
            return float(unequal), 0.0

        race = Race(
            "client",
            f"{prompts} completions from a server, {width} at a time",
            timed(lambda: ours(base_url, texts, width)),
            timed(lambda: bare(base_url, texts, width)),
            "a bare loop of httpx.AsyncClient",
            target=TARGET,
        )
        yield Contest("client and bare loop", check, (race,))


def ours(base_url: str, prompts: Sequence[str], width: int) -> list[str]:
    """Return the texts that our client gets."""
    from pangu_modules.llm.generation.engine import GenerationEngine

    engine = GenerationEngine.Config(base_url=base_url, model="stub", batch_size=width, max_new_tokens=16).build()
    return [completion.text for completion in engine.generate(prompts)]


def bare(base_url: str, prompts: Sequence[str], width: int) -> list[str]:
    """Return the texts that a loop of a few lines gets."""
    import httpx

    async def main() -> list[str]:
        turns = asyncio.Semaphore(width)
        async with httpx.AsyncClient(timeout=120, trust_env=False) as client:

            async def ask(number: int, prompt: str) -> str:
                question = {
                    "model": "stub",
                    "prompt": prompt,
                    "max_tokens": 16,
                    "temperature": 0.0,
                    "top_p": 1.0,
                    "seed": number,
                }
                async with turns:
                    answer = await client.post(f"{base_url}/completions", json=question)
                text: str = answer.raise_for_status().json()["choices"][0]["text"]
                return text

            return await asyncio.gather(*(ask(number, prompt) for number, prompt in enumerate(prompts)))

    return asyncio.run(main())


@contextmanager
def stub_server(delay: float) -> Iterator[str]:
    """Start the server; yield its address."""
    command = [sys.executable, "-m", "benchmarks.methods.generation.stub_server", str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.kill()
