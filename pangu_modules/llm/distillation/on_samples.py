"""How far a student is from its teacher where it matters: on texts that the student itself has just written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pangu_modules.common.batches import IGNORE_INDEX
from pangu_modules.llm.distillation.loss import distillation_loss
from pangu_modules.llm.distillation.teacher import common_rows
from pangu_modules.llm.generation.records import Rollout


@torch.no_grad()
def divergence_on_samples(
    student: Any, teacher: Any, rollouts: Sequence[Rollout], group: Callable[[Rollout], str], *, batch_size: int = 64
) -> Mapping[str, float]:
    """Return ``KL(teacher || student)`` over the whole vocabulary, the mean over a group's sampled tokens, in nats.

    Args:
        student: a transformers causal LM, in whatever mode; it is evaluated.
        teacher: another one, of the same vocabulary but for padding.
        rollouts: samples of the student, with their tokens.
        group: the name of a sample's group.
        batch_size: samples that are computed at the same time.

    Raises:
        ValueError: no sample has a token.
    """
    written = [rollout for rollout in rollouts if rollout.token_ids]
    if not written:
        raise ValueError(f"none of {len(rollouts)} samples has a token: there is nothing to compare on")
    written.sort(key=lambda rollout: len(rollout.prompt_ids) + len(rollout.token_ids))  # little padding
    sums: dict[str, float] = defaultdict(float)
    tokens: dict[str, int] = defaultdict(int)
    training = student.training
    student.eval()
    teacher.eval()
    for start in range(0, len(written), batch_size):
        chunk = written[start : start + batch_size]
        input_ids, labels = _batch(chunk, next(student.parameters()).device)
        # What is on the right of a token does not reach it, so that padding needs no mask.
        ours = student(input_ids=input_ids, use_cache=False).logits
        theirs = teacher(input_ids=input_ids, use_cache=False).logits
        losses = distillation_loss(*common_rows(ours, theirs), labels)
        for rollout, loss in zip(chunk, losses.tolist(), strict=True):
            count = _policy_tokens(rollout)
            sums[group(rollout)] += loss * count
            tokens[group(rollout)] += count
    student.train(training)
    return {name: sums[name] / max(1, tokens[name]) for name in sums}


def _batch(rollouts: Sequence[Rollout], device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(len(rollout.prompt_ids) + len(rollout.token_ids) for rollout in rollouts)
    ids = torch.zeros(len(rollouts), longest, dtype=torch.long)
    labels = torch.full_like(ids, IGNORE_INDEX)
    for row, rollout in enumerate(rollouts):
        tokens = torch.tensor([*rollout.prompt_ids, *rollout.token_ids])
        ids[row, : len(tokens)] = tokens
        own = torch.tensor(rollout.policy_mask or (True,) * len(rollout.token_ids))
        first = len(rollout.prompt_ids)
        labels[row, first : len(tokens)] = torch.where(own, tokens[first:], IGNORE_INDEX)
    return ids.to(device), labels.to(device)


def _policy_tokens(rollout: Rollout) -> int:
    return sum(rollout.policy_mask) if rollout.policy_mask else len(rollout.token_ids)
