"""The race of the store: samples that are generated and kept against the generating alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.races.race import Contest, Race

TASKS, SAMPLES, NEW_TOKENS = 8, 4, 32  # of one shard, as in recipes/generate_smollm2.py but for shorter answers
TARGET = 1 / 1.02


def contests(engine: Any = None) -> Iterator[Contest]:
    """Build the contest.

    Args:
        engine: what generates; None: SmolLM2-135M, with log-probabilities.
    """
    engine = _smollm2() if engine is None else engine
    with tempfile.TemporaryDirectory() as folder:
        yield store_contest(engine, Path(folder))


def store_contest(engine: Any, folder: Path) -> Contest:
    """Return the race of generating and keeping a shard against the generating in the same run.

    Two runs of a model differ by more than the two hundredths that are asked about, so both times are of one run.
    """
    from pangu_modules.llm.generation.store.rollouts import RolloutStore, read_rollouts

    prompts = {f"task-{number}": [_message(number)] for number in range(TASKS)}
    generating: list[float] = []
    turns = 0

    def ours() -> float:
        nonlocal turns
        start = time.perf_counter()
        rollouts = _named(engine.generate(list(prompts.values()), samples=SAMPLES), list(prompts))
        generating.append(time.perf_counter() - start)
        with RolloutStore(folder / "store", {"model": "raced"}) as store:
            start = time.perf_counter()
            store.add(rollouts, prompts, number=turns, seconds=generating[-1])
            turns += 1
            return generating[-1] + time.perf_counter() - start

    def check() -> tuple[float, float]:
        rollouts = _named(engine.generate(list(prompts.values()), samples=SAMPLES), list(prompts))
        with RolloutStore(folder / "checked", {"model": "raced"}) as store:
            store.add(rollouts, prompts, number=0, seconds=0.0)
        return float(list(map(_kept, read_rollouts(folder / "checked"))) != list(map(_kept, rollouts))), 0.0

    race = Race(
        "store",
        f"a shard of {TASKS} prompts with {SAMPLES} samples of {NEW_TOKENS} tokens: generated and kept, against the "
        "generating in the same run",
        ours,
        lambda: generating[-1],
        "nothing kept",
        target=TARGET,
    )
    return Contest("samples as generated and as read back", check, (race,))


def _named(rollouts: Sequence[Any], keys: Sequence[str]) -> list[Any]:
    return [replace(rollout, key=keys[number // SAMPLES]) for number, rollout in enumerate(rollouts)]


def _kept(rollout: Any) -> tuple[Any, ...]:
    """Return what a store must keep to the last bit; log-probabilities are stored as float32."""
    return rollout.key, rollout.sample, rollout.text, rollout.prompt_ids, rollout.token_ids, rollout.policy_mask


def _message(number: int) -> dict[str, str]:
    return {"role": "user", "content": f"What is {number + 3} * {number + 7}? Explain each step."}


def _smollm2() -> Any:
    from pangu_modules import CausalLM, GenerationEngine

    module: Any = CausalLM.Config(model="smollm2").build().eval()
    settings = {"temperature": 1.0, "max_new_tokens": NEW_TOKENS, "batch_size": TASKS * SAMPLES, "logprobs": True}
    return GenerationEngine.Config(**settings).build(model=module.model, tokenizer=module.tokenizer)
