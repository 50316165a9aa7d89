"""Stores of samples and of scores, written without any model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_modules.llm.generation.records import Rollout, SequenceScores
from pangu_modules.llm.generation.store.rollouts import RolloutStore
from pangu_modules.llm.generation.store.score_rows import CachedScores, Packing, packed_row, score_table
from pangu_modules.llm.generation.store.scores import ScoreStore

VOCABULARY = 40
SAMPLED = {"model": "student", "template": "", "tokenizer": "", "sampling": {"temperature": 1.0}, "seed": 0}


def sample(number: int, length: int = 6, **fields: Any) -> Rollout:
    """Return an answer to task `number`; its tokens are drawn from the number."""
    ids = tuple(np.random.default_rng(number).integers(2, VOCABULARY, length).tolist())
    known = {
        **{"text": " ".join(map(str, ids)), "finish_reason": "stop", "prompt_ids": (1, 2 + number % 7)},
        **{"token_ids": ids, "policy_mask": (True,) * length, "logprobs": (-1.0,) * length},
        **{"key": f"task {number}", "model": "student", "labels": {"mode": ("fast", "thinking")[number % 2]}},
    }
    return Rollout(**{**known, **fields})


def write_rollouts(folder: Path, rollouts: Sequence[Rollout], **identity: Any) -> str:
    with RolloutStore(folder, {**SAMPLED, **identity}) as store:
        prompts = {one.key: [{"role": "user", "content": one.key}] for one in rollouts}
        store.add(rollouts, prompts, number=0, seconds=1.0)
    return str(folder)


def scores_of(rollout: Rollout, top_k: int, seed: int = 0) -> SequenceScores:
    """Return what a teacher says of a sample: a distribution for each of its tokens, drawn from them and the seed."""
    ids = [*rollout.prompt_ids, *rollout.token_ids]
    generator = np.random.default_rng([seed, *ids])
    logits = generator.normal(size=(len(ids) - 1, VOCABULARY)) * 2
    logprobs = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)
    order = np.argsort(-logprobs, axis=1)[:, :top_k]
    own = logprobs[np.arange(len(ids) - 1), ids[1:]]
    return SequenceScores(own, order.astype(np.int32), np.take_along_axis(logprobs, order, 1))


def write_scores(
    folder: Path,
    samples: Sequence[Rollout],
    *,
    top_k: int = 5,
    packing: Packing | None = None,
    seed: int = 0,
    **more: Any,
) -> str:
    packing = packing or Packing(VOCABULARY, "float32")
    own = {"top_k": top_k, "vocabulary": VOCABULARY, "teacher": "", "rollouts": SAMPLED, **more}
    rows = [packed_row(CachedScores.of(vars(one), scores_of(one, top_k, seed)), packing) for one in samples]
    with ScoreStore(folder, {"model": "teacher", **own}) as store:
        store.append(score_table(rows, packing.precision), 0, {})
    return str(folder)
