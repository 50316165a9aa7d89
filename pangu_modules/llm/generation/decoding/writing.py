"""Writing: a completion under way, from its prompt to its record."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pangu_modules.llm.generation.decoding.stopping import Stopping
from pangu_modules.llm.generation.records import FinishReason, Rollout


@dataclass(eq=False)
class Writing:
    """A completion under way.

    Attributes:
        prompt: number of its prompt.
        prompt_ids: the prompt.
        sample: number of the sample.
        room: tokens that it may have at most.
        generator: of its own random numbers.
        stopping: when it ends.
        tokens: written so far.
        logprobs: of each under the model; empty where none were asked for.
        sampled_logprobs: of each under the distribution sampled from; empty where none were asked for.
        reason: why it ended, once it has.
    """

    prompt: int
    prompt_ids: tuple[int, ...]
    sample: int
    room: int
    generator: np.random.Generator
    stopping: Stopping
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled_logprobs: list[float] = field(default_factory=list)
    reason: FinishReason | None = None

    def add(self, token: int, logprobs: tuple[float, float] | None = None) -> bool:
        """Add a token, perhaps with its log-probabilities, and return whether the completion goes on."""
        self.tokens.append(token)
        if logprobs is not None:
            self.logprobs.append(logprobs[0])
            self.sampled_logprobs.append(logprobs[1])
        self.reason = self.stopping.reason(self.tokens, self.room)
        return self.reason is None

    def rollout(self, seed: int, model: str) -> Rollout:
        """Return the record of a completion that has ended.

        Args:
            seed: of the call.
            model: hash of the weights.
        """
        assert self.reason is not None
        return Rollout(
            text=self.stopping.text(self.tokens, self.reason),
            finish_reason=self.reason,
            prompt_ids=self.prompt_ids,
            token_ids=tuple(self.tokens),
            policy_mask=(True,) * len(self.tokens),
            logprobs=tuple(self.logprobs) if self.logprobs else None,
            sampled_logprobs=tuple(self.sampled_logprobs) if self.logprobs else None,
            seed=seed,
            sample=self.sample,
            model=model,
        )
