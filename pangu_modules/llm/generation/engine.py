"""GenerationEngine: the only way to sample and to score text - a model in this process, or an OpenAI server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from pangu_modules.common.config import Configurable
from pangu_modules.llm.generation.decoding.checks import (
    check_choice,
    check_tokens,
    positions_of,
    prompt_tokens,
    room_for_each,
    vocabulary_of,
)
from pangu_modules.llm.generation.decoding.sampling import random_numbers
from pangu_modules.llm.generation.decoding.speculation import Speculation, SpeculativeDecoder
from pangu_modules.llm.generation.decoding.stopping import Stopping, end_tokens
from pangu_modules.llm.generation.decoding.writing import Writing
from pangu_modules.llm.generation.prompts import Prompt
from pangu_modules.llm.generation.records import Rollout, SequenceScores, sample_seed
from pangu_modules.llm.generation.server.calls import complete_on_server, score_on_server
from pangu_modules.llm.generation.settings import GenerationSettings
from pangu_modules.llm.generation.weights_hash import weights_hash
from pangu_modules.training.randomness import isolated_randomness


class GenerationEngine(Configurable):
    """Continues prompts and scores texts, with random numbers of its own: it neither uses nor moves those of training.

    **Each completion depends on the model, the seed, its prompt and its sample number alone**: not on the batch size,
    on the other prompts or on their order, up to the rounding of the model's own arithmetic, which may differ between
    batches where float64 does not compute it.

    With an assistant, a drafter, it decodes speculatively, one completion at a time; `speculation` then counts passes,
    and drafted and accepted tokens. Greedy continuations are the same with it and without, and there are no
    log-probabilities.

    Args:
        config: the configuration.
        model: a transformers causal LM; needed unless a server is configured.
        tokenizer: its tokenizer; needed for prompts that are not tokens already, for stop strings and for texts.

    Raises:
        ValueError: there is neither model nor server.
    """

    class Config(GenerationSettings):
        """How to choose tokens, and where."""

    config: Config

    def __init__(self, config: Config, *, model: nn.Module | None = None, tokenizer: Any = None) -> None:
        if model is None and config.base_url is None:
            raise ValueError("a generation engine needs a model in this process, or base_url and model of a server")
        self.config = config
        self.model: Any = model
        self.tokenizer = tokenizer
        self._drafting = SpeculativeDecoder(model, tokenizer, config)

    @property
    def speculation(self) -> Speculation:
        """Counts of speculative decoding, over all calls."""
        return self._drafting.counts

    def generate(
        self, prompts: Sequence[Prompt], *, seed: int | None = None, samples: int | None = None, first_sample: int = 0
    ) -> list[Rollout]:
        """Return completions of each prompt: all samples of the first prompt, then all of the second, and so on.

        Args:
            prompts: texts, token ids or conversations.
            seed: in place of the configuration's.
            samples: of each prompt, in place of the configuration's.
            first_sample: number of the first; whoever has samples 0 to 3 gets further ones from 4 on.

        Raises:
            ValueError: a prompt is empty, too long or not the model's, or needs a tokenizer or chat template that is
                not there; a setting does not fit the model.
            IncompleteGenerationError: the server has no answer to some prompts.
            ConnectionError: the server cannot be reached, or all its answers are errors.
        """
        seed = self.config.seed if seed is None else seed
        samples = self.config.samples if samples is None else samples
        if samples < 1 or first_sample < 0:
            raise ValueError(f"samples={samples} from first_sample={first_sample}: give at least 1, from 0 on")
        if self.config.base_url is not None:
            return complete_on_server(self.config, list(prompts), seed, samples, first_sample)
        return self._write([prompt_tokens(prompt, self.tokenizer) for prompt in prompts], seed, samples, first_sample)

    def score(
        self, sequences: Sequence[Sequence[int]], *, top_k: int = 0, num_tokens: int | None = None
    ) -> list[SequenceScores]:
        """Return the log-probability of each token of each sequence, given those before it, and of the likeliest.

        Logits of at most ``config.chunk_tokens`` tokens are in memory at a time.

        Args:
            sequences: token ids.
            top_k: number of likeliest tokens at each place.
            num_tokens: what the model's head has beyond so many tokens is padding, and has no probability; None: all
                are tokens. A server decides on its own.

        Raises:
            ValueError: a sequence is empty or has tokens that the model does not have, or there are fewer than `top_k`.
            ConnectionError: the server cannot be reached, or gives no log-probabilities.
        """
        from pangu_modules.llm.generation.decoding.scoring import score_sequences

        if self.config.base_url is not None:
            return score_on_server(self.config, sequences, top_k)
        vocabulary = min(vocabulary_of(self.model), num_tokens or vocabulary_of(self.model))
        if not 0 <= top_k <= vocabulary:
            raise ValueError(f"top_k={top_k}: the model has {vocabulary} tokens; give 0 to {vocabulary}")
        for number, sequence in enumerate(sequences):
            if not len(sequence):
                raise ValueError(f"sequence {number} is empty: a model can only score one token or more")
        check_tokens(sequences, vocabulary, "sequence")
        with _undisturbed(self.model, seed=0):
            return score_sequences(self.model, sequences, self.config, top_k, vocabulary)

    def _write(self, prompts: list[list[int]], seed: int, samples: int, first_sample: int) -> list[Rollout]:
        """Continue prompts with the model in this process."""
        from pangu_modules.llm.generation.decoding.batch import BatchDecoder

        vocabulary = vocabulary_of(self.model)
        check_choice(self.config, vocabulary)
        check_tokens(prompts, vocabulary, "prompt")
        rooms = room_for_each(prompts, positions_of(self.model), self.config.max_new_tokens)
        stopping = Stopping(self.config, self.tokenizer, end_tokens(self.model, self.tokenizer))
        writings = [
            Writing(number, tuple(ids), sample, room, random_numbers(sample_seed(seed, ids, sample)), stopping)
            for number, (ids, room) in enumerate(zip(prompts, rooms, strict=True))
            for sample in range(first_sample, first_sample + samples)
        ]
        # Prompts of about the same length share a batch, which saves padding.
        waiting = sorted(writings, key=lambda writing: -len(writing.prompt_ids))
        with _undisturbed(self.model, seed):
            if self.config.assistant is None:
                BatchDecoder(self.model, self.config).write(prompts, waiting)
            else:
                self._drafting.write(waiting)
        name = weights_hash(self.model) if prompts else ""
        return [writing.rollout(seed, name) for writing in writings]


@contextmanager
def _undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Put all parts of a model into evaluation mode within the block, and each back into its own mode after it.

    What a model's own code draws at random there is seeded, and training's random numbers stay as they were.
    """
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        # No inference mode: buffers a model renews while it writes (rotary frequencies) must be fit for training.
        with isolated_randomness(next(model.parameters()).device, seed):
            yield
    finally:
        for part in training:
            part.training = True
