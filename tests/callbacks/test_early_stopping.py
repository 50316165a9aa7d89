"""EarlyStopping watches the module's own metric, stays stopped after a resume, and says what is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from pydantic import ValidationError
from quiet_trainer import quiet_trainer
from torch.utils.data import DataLoader

from callbacks import EarlyStopping
from pangu_modules.common.errors import UsageError

LOADER = DataLoader(torch.zeros(4, 1), batch_size=2)


class Scripted(LightningModule):
    """Logs the given values of a metric, one a validation."""

    monitor = ("score", "max")

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.values = values

    def training_step(self, batch: Any, index: int) -> Any:
        return self.layer(batch).sum()

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("score", torch.tensor(self.values[self.current_epoch]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def epochs(tmp_path: Any, values: list[float], **config: Any) -> int:
    stop = EarlyStopping.Config(**config).build(name="stop")
    trainer = quiet_trainer(tmp_path, [stop], max_epochs=len(values), num_sanity_val_steps=0)
    trainer.fit(Scripted(values), LOADER, LOADER)
    return int(trainer.current_epoch)


def test_it_stops_after_as_many_validations_without_an_improvement(tmp_path: Any) -> None:
    rising_then_not = [0.1, 0.2, 0.3, 0.3, 0.2, 0.1, 0.1]
    assert epochs(tmp_path, rising_then_not, patience=2) == 5  # more is better, as the module says
    assert epochs(tmp_path, rising_then_not, patience=2, monitor="score", mode="min") == 3
    assert epochs(tmp_path, rising_then_not, patience=1, min_delta=0.15) == 2
    assert epochs(tmp_path, rising_then_not, stopping_threshold=0.25) == 3
    assert epochs(tmp_path, [0.1, float("nan"), 0.3]) == 2
    assert epochs(tmp_path, [0.1, float("nan"), 0.3], check_finite=False) == 3


def test_a_resumed_run_that_had_stopped_stays_stopped(tmp_path: Any) -> None:
    values = [0.3, 0.2, 0.1, 0.1]
    stop = EarlyStopping.Config(patience=1).build(name="stop")
    trainer = quiet_trainer(tmp_path, [stop], max_epochs=4, num_sanity_val_steps=0)
    trainer.fit(Scripted(values), LOADER, LOADER)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    assert torch.load(tmp_path / "stopped.ckpt", weights_only=True)["callbacks"]["stop"]["wait_count"] == 1
    steps = []
    for patience in (1, 2):
        again = EarlyStopping.Config(patience=patience).build(name="stop")
        resumed = quiet_trainer(tmp_path, [again], max_epochs=4, num_sanity_val_steps=0)
        resumed.fit(Scripted(values), LOADER, LOADER, ckpt_path=tmp_path / "stopped.ckpt", weights_only=True)
        steps.append(resumed.global_step)
    assert steps == [4, 6]  # two steps an epoch: none more, and one epoch more with more patience


def test_what_is_missing_is_said(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match=r"callbacks\.stop\.monitor: 'val/loss' is not logged; logged are: score"):
        epochs(tmp_path, [0.1], monitor="val/loss", mode="min")
    with pytest.raises(ValidationError, match="monitor and mode go together"):
        EarlyStopping.Config(monitor="score")
    stop = EarlyStopping.Config().build(name="stop")
    unnamed = type("Unnamed", (Scripted,), {"monitor": None})([0.1])
    with pytest.raises(ValueError, match="Unnamed names no metric of its own"):
        quiet_trainer(tmp_path, [stop], max_epochs=1).fit(unnamed, LOADER, LOADER)
    with pytest.raises(ValueError, match="limit_val_batches=0 validates nothing"):
        quiet_trainer(tmp_path, [stop], max_epochs=1, limit_val_batches=0).fit(Scripted([0.1]), LOADER, LOADER)
