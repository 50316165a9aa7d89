"""TaughtSequences: sampled sequences with what a teacher says of each token, as batches of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pangu_modules.common.batches import IGNORE_INDEX
from pangu_modules.llm.generation.records import Rollout
from pangu_modules.llm.generation.store.score_rows import CachedScores, sequence_hash


class TaughtSequences:
    """Samples as flat arrays, from which a batch is one indexing: prompts, tokens, and scores of a teacher, if any.

    Entry t of each tensor of a batch belongs to the token at t; padding is on the right.

    Args:
        rollouts: the samples, with their tokens.
        scores: what the teacher says of each, in the same order, or None.

    Raises:
        ValueError: scores are of other tokens than a sample's, or have other numbers of likeliest tokens.
    """

    def __init__(self, rollouts: Sequence[Rollout], scores: Sequence[CachedScores] | None = None) -> None:
        self.rollouts = list(rollouts)
        masks = [policy_mask(rollout) for rollout in self.rollouts]
        self.lengths = np.array([len(rollout.prompt_ids) + len(rollout.token_ids) for rollout in self.rollouts])
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])[:-1]
        self._ids = _joined([[*rollout.prompt_ids, *rollout.token_ids] for rollout in self.rollouts], np.int64)
        written = [np.r_[np.zeros(len(one.prompt_ids), bool), mask] for one, mask in zip(rollouts, masks, strict=True)]
        self._written = _joined(written, bool)
        self.num_written = int(self._written.sum())
        # Which entry of the arrays below a token has; others share an empty one at their end.
        self._entry = np.where(self._written, np.cumsum(self._written) - 1, self.num_written)
        unknown = [np.full(int(mask.sum()), np.nan) for mask in masks]
        sampled = [
            none if one.logprobs is None else np.asarray(one.logprobs)[mask]
            for one, mask, none in zip(rollouts, masks, unknown, strict=True)
        ]
        self._sampled = _joined([*sampled, [np.nan]], np.float32)
        self._scores: dict[str, np.ndarray] = {}
        if scores is not None:
            self._take(scores)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.rollouts)

    def batch(self, indices: Sequence[int], padding: int = 0) -> dict[str, Tensor]:
        """Return samples as a batch.

        Returns:
            ``input_ids``, ``attention_mask``, ``labels`` (-100 where the policy did not write), all (batch, longest)
            int64; ``sampled_logprobs`` (batch, longest) under the model that sampled, nan where unknown; with scores
            ``teacher_ids`` (batch, longest, k) int64, ``teacher_logprobs`` alike, minus infinity where there are fewer
            than k, and ``teacher_label_logprobs`` (batch, longest).
        """
        rows = np.asarray(indices)
        lengths = self.lengths[rows]
        places = np.arange(lengths.max())
        there = places < lengths[:, None]
        index = np.where(there, self._starts[rows][:, None] + places, 0)
        ids, written = self._ids[index], self._written[index] & there
        entry = np.where(there, self._entry[index], self.num_written)
        batch = {
            "input_ids": np.where(there, ids, padding),
            "attention_mask": there.astype(np.int64),
            "labels": np.where(written, ids, IGNORE_INDEX),
            "sampled_logprobs": self._sampled[entry],
        }
        for name, values in self._scores.items():
            taken = values[entry]
            batch[name] = taken.astype(np.int64 if name == "teacher_ids" else np.float32)
        return {name: torch.from_numpy(value) for name, value in batch.items()}

    def unseen_share(self) -> float:
        """Return the share of written tokens at which the teacher's likeliest one is none that the policy wrote."""
        if not self.num_written:
            return 0.0
        emitted = np.unique(self._ids[self._written])
        best = self._scores["teacher_ids"][: self.num_written, 0]
        return float(1 - np.isin(best, emitted).mean())

    def _take(self, scores: Sequence[CachedScores]) -> None:
        for rollout, own in zip(self.rollouts, scores, strict=True):
            _check_same(rollout, own)
        widths = {own.top_ids.shape[1] for own in scores}
        if len(widths) > 1:
            raise ValueError(f"teachers keep {sorted(widths)} likeliest tokens: score all samples with one top_k")
        k = widths.pop() if widths else 0
        self._scores = {
            "teacher_ids": _joined([*(own.top_ids for own in scores), np.zeros((1, k))], np.int32),
            "teacher_logprobs": _joined([*(own.top_logprobs for own in scores), np.zeros((1, k))], None),
            "teacher_label_logprobs": _joined([*(own.logprobs for own in scores), np.zeros(1)], None),
        }


def policy_mask(rollout: Rollout) -> np.ndarray:
    """Return which of a sample's tokens the policy wrote, (tokens,) bool."""
    return np.array(rollout.policy_mask or (True,) * len(rollout.token_ids), dtype=bool)


def sequence_of(rollout: Rollout) -> str:
    """Return the hash of a sample's tokens, see `sequence_hash`."""
    return sequence_hash(rollout.prompt_ids, rollout.token_ids, policy_mask(rollout).tolist())


def _check_same(rollout: Rollout, scores: CachedScores) -> None:
    what = f"sample {rollout.sample} of {rollout.key!r}"
    written = int(policy_mask(rollout).sum())
    if len(scores.logprobs) != written:
        raise ValueError(f"{what} has {written} tokens, the teacher's scores {len(scores.logprobs)}: score it again")
    if scores.sequence != sequence_of(rollout):
        raise ValueError(f"{what} has other tokens than those that the teacher has scored: score it again")


def _joined(parts: Sequence[object], dtype: type | None) -> np.ndarray:
    """Return arrays in one, of a type, or with None of the first one's."""
    arrays = [np.asarray(part) for part in parts]
    if dtype is None:
        dtype = arrays[0].dtype.type
    return np.concatenate([array.astype(dtype) for array in arrays]) if arrays else np.zeros(0, dtype)
