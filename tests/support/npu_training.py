"""Trainings for the tests of NPUs, on whichever device; they need torch and lightning only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

STATE = "state.ckpt"


class Regression(lightning.LightningModule):
    """Two layers that fit a linear map, with dropout if asked for."""

    def __init__(self, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2)).to(dtype)

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        return (self.model(x) - y).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Sharded(Regression):
    """The same, its layers sharded by FSDP2."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        self.to(self.trainer.strategy.root_device)
        for layer in (self.model[0], self.model[3], self.model):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"], reshard_after_forward=layer is not self.model)


class Kept(Callback):
    """Keeps a checkpoint at an epoch's end, and ends training there."""

    def __init__(self, path: Path, epoch: int) -> None:
        self.path, self.epoch = path, epoch

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 4, generator=generator)
    return DataLoader(TensorDataset(x, x @ torch.randn(4, 2, generator=generator)), batch_size=4)


def fit(folder: Path, module: Any = None, callbacks: Any = (), ckpt_path: Any = None, **trainer: Any) -> Any:
    """Train a module of seed 1 for two epochs; return the Trainer."""
    lightning.seed_everything(1, verbose=False)
    module = Regression() if module is None else module()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    own = {"max_epochs": 2, "enable_checkpointing": False, "default_root_dir": folder, "callbacks": list(callbacks)}
    trainer = lightning.Trainer(**{**own, **quiet, **trainer})
    trainer.fit(module, loader(), loader(), ckpt_path=ckpt_path)
    return trainer


def numbers(trainer: Any) -> dict[str, torch.Tensor]:
    """Return the weights, and the loss of the last validation, as CPU tensors."""
    weights = {name: value.detach().cpu().clone() for name, value in trainer.lightning_module.state_dict().items()}
    return {**weights, "val/loss": trainer.callback_metrics["val/loss"].cpu()}
