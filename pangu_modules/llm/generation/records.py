"""Rollout: the record of one generated sample; whatever samples text returns it, and the store keeps it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

FinishReason = Literal["stop", "stop_string", "length"]


@dataclass(frozen=True)
class Rollout:
    """What a model wrote after a prompt, with all that later training needs of it.

    Attributes:
        text: the completion without special tokens, and without the stop string that ended it.
        finish_reason: "stop" after an end-of-text or stop token, "stop_string", or "length" at the limit of new tokens.
        prompt_ids: tokens that the model read; empty from a server that does not tell them.
        token_ids: tokens after the prompt, with the one that ended it; empty from a server that does not tell them.
            They are those that were sampled, never the tokens of `text`.
        policy_mask: for each of `token_ids`, whether the policy wrote it; others (a tool's answer) are no actions.
        logprobs: for each of `token_ids`, its log-probability (nats) under the model itself; None where it is unknown.
        sampled_logprobs: the same under the distribution sampled from, after temperature, top-k and top-p.
        seed: of the sampling.
        sample: number of this sample among those of its prompt, from 0.
        model: hash of the model's weights, or a server's name for it.
        key: of the task that it answers; empty for a bare prompt.
        labels: what tables group by, e.g. ``{"task": "chain_sum", "level": "1"}``.
        rewards: parts of the reward by component, e.g. ``{"answer": 1.0}``.
        reasons: of each part, why.
    """

    text: str
    finish_reason: FinishReason
    prompt_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    policy_mask: tuple[bool, ...] = ()
    logprobs: tuple[float, ...] | None = None
    sampled_logprobs: tuple[float, ...] | None = None
    seed: int = 0
    sample: int = 0
    model: str = ""
    key: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    rewards: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SequenceScores:
    """Teacher-forced log-probabilities (nats) of one sequence; entry t belongs to token t + 1, given those up to t.

    Attributes:
        logprobs: of the sequence's own tokens, (tokens - 1,) float32.
        top_ids: the likeliest tokens, most likely first, (tokens - 1, k) int32; k is 0 where none were asked for.
        top_logprobs: theirs, (tokens - 1, k) float32; the normaliser is over the whole vocabulary.
    """

    logprobs: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray


def sample_seed(seed: int, prompt: Sequence[int] | str, sample: int) -> int:
    """Return the 64-bit seed of one completion: of (seed, prompt, sample number) alone, whatever else is in the batch.

    Args:
        seed: of the call.
        prompt: its tokens, or its text where a server makes the tokens.
        sample: number of the sample.
    """
    digest = hashlib.blake2b(digest_size=8)
    content = prompt.encode() if isinstance(prompt, str) else np.asarray(prompt, dtype=np.int64).tobytes()
    digest.update(f"{seed} {sample} {type(prompt) is str} ".encode())
    digest.update(content)
    return int.from_bytes(digest.digest(), "little")


class IncompleteGenerationError(ConnectionError):
    """Some prompts have no completion; those that have one are not lost.

    Attributes:
        rollouts: in the order asked for; None where there is none.
        failures: reason by the number of the rollout.
    """

    def __init__(self, rollouts: Sequence[Rollout | None], failures: Mapping[int, str]) -> None:
        self.rollouts = list(rollouts)
        self.failures = dict(failures)
        first = next(iter(self.failures.values()), "")
        super().__init__(f"{len(self.failures)} of {len(self.rollouts)} completions are missing; the first: {first}")
