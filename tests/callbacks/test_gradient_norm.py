"""GradientNorm equals the norm of all gradients written out, before clipping and after accumulation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from quiet_trainer import quiet_trainer
from torch.utils.data import DataLoader

from callbacks import GradientNorm
from callbacks.gradient_norm import gradient_norm

SAMPLES = torch.tensor([[3.0], [5.0], [1.0], [7.0]])


class Linear(LightningModule):
    """The gradient of weight and bias is (mean of inputs, 1) per batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, index: int) -> Any:
        return self.layer(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Collect(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.values.append(float(trainer.callback_metrics.get("train/gradient_norm", math.nan)))


def logged(tmp_path: Any, config: GradientNorm.Config, **arguments: Any) -> list[float]:
    collect = Collect()
    trainer = quiet_trainer(tmp_path, [config.build(name="norm"), collect], max_epochs=1, **arguments)
    trainer.fit(Linear(), DataLoader(SAMPLES, batch_size=1))
    return collect.values


def test_norms_equal_the_sums_written_out() -> None:
    gradients = [torch.tensor([[3.0, -4.0]]), torch.tensor([12.0]), torch.zeros(0)]
    assert gradient_norm(gradients).item() == pytest.approx(math.sqrt(9 + 16 + 144), rel=1e-7)
    assert gradient_norm(gradients[:2], "max").item() == 12.0
    assert gradient_norm([torch.full((2**16,), 1.0, dtype=torch.bfloat16)]).item() == pytest.approx(256, rel=1e-6)
    assert gradient_norm([]).item() == 0.0


def test_it_is_logged_before_clipping_and_after_accumulation(tmp_path: Any) -> None:
    every = logged(tmp_path, GradientNorm.Config(), gradient_clip_val=0.5)
    assert every == pytest.approx([math.hypot(x, 1) for x in (3, 5, 1, 7)], rel=1e-6)
    assert logged(tmp_path, GradientNorm.Config(kind="max")) == pytest.approx([3, 5, 1, 7], rel=1e-6)
    two = logged(tmp_path, GradientNorm.Config(), accumulate_grad_batches=2)
    assert two[1::2] == pytest.approx([math.hypot(4, 1), math.hypot(4, 1)], rel=1e-6)
    sparse = logged(tmp_path, GradientNorm.Config(every_n_steps=3))
    assert sparse == pytest.approx([math.hypot(3, 1)] * 3 + [math.hypot(7, 1)], rel=1e-6)
