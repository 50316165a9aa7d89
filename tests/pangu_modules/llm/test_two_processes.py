"""Perplexity is that of all targets, however many processes share them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from tiny_llm import tiny_module
from tiny_text import TokenBatches, Tokens


class Unequal(Tokens):
    """Sequences of which the first has 15 targets, the next 13, and so on."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        labels = self.tokens[index].clone()
        labels[: 1 + 2 * index] = -100
        return {"input_ids": self.tokens[index], "labels": labels}


class UnequalBatches(TokenBatches):
    """Validation on six of them, in batches of two."""

    class Config(TokenBatches.Config):
        """Small batches."""

        eval_batch_size: int = 2

    def setup(self, stage: str | None = None) -> None:
        """Draw the tokens."""
        self.val_dataset = Unequal(6, seed=4)


def measured(folder: Path, **arguments: Any) -> dict[str, float]:
    trainer = Trainer(default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False, **arguments)
    (values,) = trainer.validate(tiny_module(), datamodule=UnequalBatches.Config().build(), verbose=False)
    return dict(values)


def test_two_processes_measure_the_perplexity_of_one(tmp_path: Path) -> None:
    whole = measured(tmp_path, devices=1)
    shared = measured(tmp_path, devices=2, strategy="ddp_fork")  # no second import of everything
    module, data = tiny_module().eval(), Unequal(6, seed=4)
    losses = []
    for row in range(6):  # token by token
        sample = data[row]
        with torch.no_grad():
            logits = module.model(input_ids=sample["input_ids"][None]).logits[0].double()
        for position, label in enumerate(sample["labels"][1:].tolist()):
            if label != -100:
                losses.append(float(-logits[position].log_softmax(-1)[label]))
    assert len(losses) == 15 + 13 + 11 + 9 + 7 + 5
    # float32 logits in batches of another size; measured 2e-7
    assert whole["val/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert shared == pytest.approx(whole, rel=1e-6)
