"""Calibration windows: a few hundred full windows of tokens, drawn from sequences of any length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from pangu_modules.common.config import Config


class CalibrationConfig(Config):
    """Which windows of the text the statistics are taken on, and which text that is."""

    renamed = {"n_samples": "num_samples", "seq_len": "sequence_length"}

    num_samples: PositiveInt = Field(32, description="Calibration windows, each from another training sequence.")
    sequence_length: PositiveInt = Field(128, description="Tokens of a window; shorter sequences are not used.")
    batch_size: PositiveInt = Field(8, description="Windows per forward pass; no effect on the result but rounding.")
    seed: NonNegativeInt = Field(42, description="Seed of the choice of sequences and windows.")
    source: str = Field(
        "",
        description="Text to calibrate on, as a source of TextData: a file, a folder, a dataset of the hub, or "
        "'python_topics'; empty: the datamodule's calibration split, or its training data.",
    )


def draw_windows(
    sequences: Iterable[Mapping[str, Any]], config: CalibrationConfig, generator: torch.Generator
) -> list[dict[str, Tensor]]:
    """Cut one random window out of each long enough sequence until there are `num_samples`.

    Args:
        sequences: dictionaries with ``input_ids`` (seq,) and, where padded, ``attention_mask`` (seq,), in random order.
        config: number and length of the windows.
        generator: source of the windows' positions.

    Returns:
        Batches with ``input_ids`` (batch, sequence_length) and no padding.

    Raises:
        ValueError: there are too few sequences that are long enough; the longest one is named.
    """
    windows: list[Tensor] = []
    longest = 0
    for sequence in sequences:
        tokens = _real_tokens(sequence)
        longest = max(longest, len(tokens))
        room = len(tokens) - config.sequence_length
        if room >= 0:
            start = int(torch.randint(room + 1, (), generator=generator))
            windows.append(tokens[start : start + config.sequence_length])
        if len(windows) == config.num_samples:
            return [{"input_ids": torch.stack(group)} for group in _groups(windows, config.batch_size)]
    text = config.source or "the training data"
    raise ValueError(
        f"calibration wants {config.num_samples} windows of {config.sequence_length} tokens, {text} has {len(windows)} "
        f"sequences of that length (the longest has {longest} tokens): lower "
        "calibration.sequence_length or calibration.num_samples, or give more text"
    )


def length_of(sequence: Mapping[str, Any]) -> int:
    """Return a sequence's tokens without padding."""
    return len(_real_tokens(sequence))


def _real_tokens(sequence: Mapping[str, Any]) -> Tensor:
    tokens = torch.as_tensor(sequence["input_ids"])
    mask = sequence.get("attention_mask")
    return tokens if mask is None else tokens[torch.as_tensor(mask) != 0]


def _groups(windows: list[Tensor], size: int) -> list[list[Tensor]]:
    return [windows[start : start + size] for start in range(0, len(windows), size)]
