"""Cross-entropy of each token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pangu_modules.ascend.ops.examples import Example, Maker
from pangu_modules.ascend.ops.operator import FusedCall, Operator

MAX_ROWS = 200_000


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Return ``-log softmax(logits)[target]`` of each row, (N,); 0 where the target is `ignore_index`.

    torch_npu knows no negative `ignore_index`, and targets outside the classes are outside its range: such rows are
    computed for class 0, and set to 0 afterwards.

    Args:
        logits: (N, C).
        targets: (N,) int64.
        ignore_index: target without loss.
    """
    return F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="none")


def _limits(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> str | None:
    if logits.ndim != 2 or targets.dtype != torch.int64:
        return f"it takes logits (N, C) and targets in int64, not {tuple(logits.shape)} and {targets.dtype}"
    if not 0 < logits.shape[0] <= MAX_ROWS:
        return f"there are {logits.shape[0]} rows, and it takes 1 to {MAX_ROWS}"
    return None


def _call(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> FusedCall:
    return FusedCall((logits, torch.where(targets == ignore_index, 0, targets)), {"reduction": "none"})


def _counted(outputs: Any, logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    return torch.where(targets == ignore_index, 0, outputs[0])


def _examples(make: Maker) -> Iterator[Example]:
    yield Example("with an ignored row", (make.floats(5, 11), make.given([3, -100, 10, 0, 7], torch.int64)), {})
    targets = make.given([3, 2, 10, 0, 7], torch.int64)
    yield Example("a class ignored", (make.floats(5, 11), targets), {"ignore_index": 2})


CROSS_ENTROPY = Operator(
    "npu_cross_entropy_loss", cross_entropy, _call, _examples, gradients="own", limits=_limits, result=_counted
)
