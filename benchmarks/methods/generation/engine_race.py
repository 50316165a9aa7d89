"""The races of the engine in this process: rows that leave a batch against static ones, shared prefill against own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.races.race import Contest, Race, timed

if TYPE_CHECKING:
    from torch import Tensor

    from pangu_modules.llm.generation.records import Rollout

LAYERS = 6  # of 30: ten passes over all of them would take an hour of CPU time
BATCH = 16
LENGTH_TARGET = 1.5
SAMPLES = 8
SAMPLES_TARGET = 2.0
# Rounding differs with the shape of a batch, so that two nearly equal logits may change places, and all that follows.
UNLIKE = 0.05


@dataclass(frozen=True)
class Load:
    """What is written.

    Attributes:
        prompts: number of prompts.
        prompt_tokens: shortest and longest prompt.
        median: of the new tokens, whose logarithm has the standard deviation 1.
        longest: most new tokens.
        shared_prompt: tokens of the prompt of many samples.
        shared_tokens: new tokens of each of these.
    """

    prompts: int = 96
    prompt_tokens: tuple[int, int] = (16, 64)
    median: int = 12
    longest: int = 256
    shared_prompt: int = 256
    shared_tokens: int = 32


def contests(model: Any = None, load: Load | None = None) -> Iterator[Contest]:
    """Build the contests one at a time.

    Args:
        model: the model that writes; None: `short_smollm2`.
        load: what it writes.
    """
    model = short_smollm2() if model is None else model
    model.generation_config.eos_token_id = None  # completions have the lengths asked for
    yield lengths_contest(model, load or Load())
    yield samples_contest(model, load or Load())


def short_smollm2() -> Any:
    """Return the first layers of SmolLM2-135M, with its embedding and head, in float32."""
    from pangu_modules.llm.models.loading import load_causal_lm

    model: Any = load_causal_lm("smollm2").eval()
    del model.model.layers[LAYERS:]
    model.config.num_hidden_layers = LAYERS
    return model


def lengths_contest(model: Any, load: Load) -> Contest:
    """Return the race of completions of lognormal lengths: the engine's loop against `generate` in batches of 16."""
    prompts = prompts_of(model, load.prompts, load.prompt_tokens)
    lengths = lognormal_lengths(load)

    def ours() -> list[list[int]]:
        return written_by_engine(model, prompts, lengths)

    def peer() -> list[list[int]]:
        return written_by_generate(model, prompts, lengths)

    race = Race(
        "lognormal_lengths",
        f"{load.prompts} greedy completions of lognormal lengths (sigma 1, median {load.median}, mean "
        f"{sum(lengths) / len(lengths):.0f}), {BATCH} at a time",
        timed(ours),
        timed(peer),
        "transformers' generate",
        target=LENGTH_TARGET,
    )

    def check() -> tuple[float, float]:
        return unlike(ours(), peer()), UNLIKE

    return Contest("the engine's loop and generate (share of unlike tokens)", check, (race,))


def samples_contest(model: Any, load: Load) -> Contest:
    """Return the race of eight samples of one prompt: one call of the engine against eight."""
    from pangu_modules.llm.generation.engine import GenerationEngine

    (prompt,) = prompts_of(model, 1, (load.shared_prompt, load.shared_prompt))
    settings = {"temperature": 1.0, "max_new_tokens": load.shared_tokens, "batch_size": SAMPLES}
    engine = GenerationEngine.Config(**settings).build(model=model)

    def ours() -> list[Rollout]:
        return engine.generate([prompt], samples=SAMPLES)

    def peer() -> list[Rollout]:
        return [engine.generate([prompt], samples=1, first_sample=number)[0] for number in range(SAMPLES)]

    race = Race(
        "shared_prefill",
        f"{SAMPLES} samples of {load.shared_tokens} new tokens after a prompt of {load.shared_prompt}",
        timed(ours),
        timed(peer),
        f"{SAMPLES} calls of one sample",
        target=SAMPLES_TARGET,
    )

    def check() -> tuple[float, float]:
        return unlike(*([rollout.token_ids for rollout in side()] for side in (ours, peer))), UNLIKE

    return Contest("one call and one call for each sample (share of unlike tokens)", check, (race,))


def prompts_of(model: Any, count: int, tokens: tuple[int, int]) -> list[list[int]]:
    """Return prompts of random tokens, whose numbers of tokens are uniform between the two."""
    import numpy as np

    generator = np.random.default_rng(0)
    vocabulary = model.config.vocab_size
    return [
        generator.integers(vocabulary, size=size).tolist()
        for size in generator.integers(tokens[0], tokens[1], size=count, endpoint=True)
    ]


def lognormal_lengths(load: Load) -> list[int]:
    """Return the number of new tokens of each completion."""
    import numpy as np

    drawn = load.median * np.exp(np.random.default_rng(1).standard_normal(load.prompts))
    lengths: list[int] = drawn.round().clip(1, load.longest).astype(int).tolist()
    return lengths


def written_by_engine(model: Any, prompts: Sequence[list[int]], lengths: Sequence[int]) -> list[list[int]]:
    """Return completions of these lengths by the engine's loop, in the order in which they wait."""
    from pangu_modules.llm.generation.decoding.batch import BatchDecoder
    from pangu_modules.llm.generation.decoding.sampling import random_numbers
    from pangu_modules.llm.generation.decoding.stopping import Stopping
    from pangu_modules.llm.generation.decoding.writing import Writing
    from pangu_modules.llm.generation.settings import GenerationSettings

    settings = GenerationSettings(batch_size=BATCH)
    stopping = Stopping(settings, None, ())
    waiting = [
        Writing(number, tuple(prompt), 0, length, random_numbers(0), stopping)
        for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
    BatchDecoder(model, settings).write(prompts, waiting)
    return [writing.tokens for writing in waiting]


def written_by_generate(model: Any, prompts: Sequence[list[int]], lengths: Sequence[int]) -> list[list[int]]:
    """Return completions of these lengths by transformers, which ends a batch when its longest has ended."""
    import torch
    from transformers import GenerationConfig

    from pangu_modules.llm.generation.decoding.rows import pad_left

    written: list[list[int]] = []
    for start in range(0, len(prompts), BATCH):
        part = slice(start, start + BATCH)
        input_ids, mask = pad_left(prompts[part])
        rows = model.generate(
            input_ids,
            attention_mask=mask,
            generation_config=GenerationConfig(max_new_tokens=max(lengths[part]), do_sample=False, pad_token_id=0),
            stopping_criteria=[ends_at(torch.tensor(lengths[part]) + input_ids.shape[1])],
        )
        new = rows[:, input_ids.shape[1] :].tolist()
        written += [row[:length] for row, length in zip(new, lengths[part], strict=True)]
    return written


def ends_at(columns: Tensor) -> Any:
    """Return transformers' criterion by which each row of a batch ends at a column of its own, (rows,)."""
    from transformers import StoppingCriteria

    class EndsAt(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            return input_ids.shape[1] >= columns

    return EndsAt()


def unlike(ours: Iterable[Sequence[int]], peer: Iterable[Sequence[int]]) -> float:
    """Return the share of tokens that differ; completions of different lengths differ in all."""
    pairs = list(zip(ours, peer, strict=True))
    differing = sum(
        sum(a != b for a, b in zip(one, other, strict=True)) if len(one) == len(other) else max(len(one), len(other))
        for one, other in pairs
    )
    return differing / sum(max(len(one), len(other)) for one, other in pairs)
