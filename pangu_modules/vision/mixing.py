"""Mixup and CutMix through timm, reproducible: the mixing of a batch depends on its place in training alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from timm.data import Mixup


def mix(mixup: Mixup, images: Tensor, labels: Tensor, seed: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return mixed images and their soft labels.

    timm mixes pairs; the last image of an odd batch stays as it is.

    Args:
        mixup: timm's function with its settings.
        images: (batch, channels, height, width), left unchanged.
        labels: (batch,), int64.
        seed: numbers from 0 to 2^32 - 1 that decide the mixing, e.g. run seed, epoch, batch and process.

    Returns:
        Images of the same shape, and targets (batch, classes) that sum to 1.
    """
    even = len(images) - len(images) % 2
    with numpy_seed(seed):
        mixed, targets = mixup(images[:even].clone(), labels[:even])  # timm writes into its argument
    if even < len(images):
        mixup.mixup_enabled = False
        _, rest = mixup(images[even:].expand(2, -1, -1, -1), labels[even:].expand(2))
        mixup.mixup_enabled = True
        mixed, targets = torch.cat([mixed, images[even:]]), torch.cat([targets, rest[:1]])
    return mixed, targets


@contextmanager
def numpy_seed(seed: Sequence[int]) -> Iterator[None]:
    """Seed numpy's global generator inside the block and give it back its state after it."""
    state = np.random.get_state()
    np.random.seed([number % 2**32 for number in seed])
    try:
        yield
    finally:
        np.random.set_state(state)
