"""Random tokens as a datamodule with all splits, for the tests of callbacks on tiny language models."""

from __future__ import annotations

from typing import Any

import torch
from tiny_llm import VOCABULARY
from torch.utils.data import Dataset

from datamodules import DataModule


class Tokens(Dataset[dict[str, torch.Tensor]]):
    """Random sequences of 16 tokens."""

    def __init__(self, size: int, seed: int) -> None:
        self.tokens = torch.randint(3, VOCABULARY, (size, 16), generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index]}


class TokenBatches(DataModule):
    """32 training sequences, 8 for calibration, 4 for the test."""

    class Config(DataModule.Config):
        """Small batches."""

        batch_size: int = 4
        eval_batch_size: int = 4

    def setup(self, stage: str | None = None) -> None:
        """Draw the tokens."""
        self.train_dataset, self.test_dataset = Tokens(32, seed=1), Tokens(4, seed=2)
        self.val_dataset = Tokens(4, seed=4)
        self.calibration_dataset = Tokens(8, seed=3)

    def module_arguments(self) -> dict[str, Any]:
        """Return nothing: there is no tokenizer."""
        return {}
