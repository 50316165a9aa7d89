"""A training of seconds that the hardware report runs: ``python -m pangu_modules.ascend.hardware_fit ...``."""

from __future__ import annotations

import argparse
import json
import logging
import math
from pathlib import Path
from typing import Any

import pangu_modules.ascend  # noqa: F401  (before torch: see there)

import torch  # isort: skip
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pangu_modules.common.files import write_atomically

STEPS = 20


class Regression(LightningModule):
    """Two layers that fit a linear map, in float32 or as the Trainer says."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8))
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the mean squared error."""
        x, y = batch
        loss = (self.model(x) - y).square().mean()
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def fit(folder: Path, **trainer: Any) -> dict[str, Any]:
    """Train for some steps; return the losses and the weights' sum and norm as numbers.

    Args:
        folder: for what Lightning may want to write.
        **trainer: arguments of the Trainer.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    seed_everything(0, verbose=False)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(STEPS * 64, 64, generator=generator)
    data = TensorDataset(x, x @ torch.randn(64, 8, generator=generator) / 8)
    module = Regression()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    runner = Trainer(max_epochs=1, default_root_dir=folder, enable_model_summary=False, **quiet, **trainer)  # type: ignore[arg-type]
    runner.fit(module, DataLoader(data, batch_size=32))
    weights = torch.cat([parameter.detach().cpu().flatten() for parameter in module.parameters()]).double()
    connected = torch.distributed.is_initialized()
    return {
        "device": str(runner.strategy.root_device),
        "world_size": runner.world_size,
        "backend": torch.distributed.get_backend() if connected else None,
        "first_loss": module.losses[0],
        "last_loss": module.losses[-1],
        "finite": all(map(math.isfinite, module.losses)),
        "weights_sum": float(weights.sum()),
        "weights_norm": float(weights.norm()),
        "rank": runner.global_rank,
    }


def main() -> None:
    """Fit as the command line says; the first process writes what came out."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("output", type=Path)
    parser.add_argument("--accelerator", default="npu")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--strategy", default="single_npu")
    parser.add_argument("--precision", default="32-true")
    given = vars(parser.parse_args())
    output = given.pop("output")
    result = fit(output.parent, **given)
    if result.pop("rank") == 0:
        write_atomically(output, json.dumps(result))


if __name__ == "__main__":
    main()
