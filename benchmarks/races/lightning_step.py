"""The race of a recipe's training, with all that Lightning and our callbacks add, against a bare PyTorch loop."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.races.race import Contest, Race

if TYPE_CHECKING:
    from torch import Tensor

    from pangu_modules import Recipe

EPOCHS = 3
TARGET = 1 / 1.05  # at most 5 % slower
# Both sides run the same operations in the same order; seen: 0.
BOUND = 1e-6


def lightning_contest() -> Contest:
    """Return the races of the digits recipe's base stage, without validation on either side."""
    from recipes.scalenet_digits import recipe

    stage = recipe.stage("base").derive(
        trainer={"max_epochs": EPOCHS, "limit_val_batches": 0, "enable_checkpointing": False}
    )
    with_checkpoints = stage.derive(trainer={"enable_checkpointing": True})

    def race(id: str, title: str, ours: Recipe, target: float | None) -> Race:
        return Race(
            id,
            title,
            lambda: 1000 * fit_recipe(ours)[0],
            lambda: 1000 * fit_bare(stage)[0],
            "a bare PyTorch loop",
            unit="ms",
            target=target,
        )

    races = (
        race("lightning_step", "a step of the digits recipe (12 blocks, width 64, batch 64)", stage, TARGET),
        race(
            "lightning_step_with_checkpoints",
            "the same step with a checkpoint after each epoch of 31 steps",
            with_checkpoints,
            None,
        ),
    )
    return Contest("Lightning and the bare loop (weights after training)", lambda: (difference(stage), BOUND), races)


def fit_recipe(recipe: Recipe) -> tuple[float, dict[str, Tensor]]:
    """Train by the recipe engine; return seconds per step without set-up, and the final weights."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        run = recipe.fit(run_dir=Path(folder), quiet=True)
        checkpoint = torch.load(run.checkpoint, weights_only=True)
    return run.seconds / checkpoint["global_step"], checkpoint["state_dict"]


def fit_bare(recipe: Recipe) -> tuple[float, dict[str, Tensor]]:
    """Train by a loop written out, with the same model, data, optimizer, schedule and clipping; same return values."""
    import torch
    from lightning.pytorch import seed_everything
    from torch.nn.functional import cross_entropy

    from pangu_modules.training.optim import build_optimizer

    (stage,) = recipe.stages.values()
    seed_everything(stage.seed, workers=True, verbose=False)
    data = stage.data.build()
    module = stage.module.build(**data.module_arguments()).train()
    data.setup("fit")
    loader = data.train_dataloader()
    steps = EPOCHS * len(loader)
    optimizer, scheduler = build_optimizer(module, module.config.optimizer, steps)
    clipped = [parameter for group in optimizer.param_groups for parameter in group["params"]]  # Lightning's order
    start = time.perf_counter()
    for epoch in range(EPOCHS):
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            logits = module.model(batch["image"])
            # Averaged apart, as objectives are: Adam makes whole steps of last bits where a gradient should be zero.
            cross_entropy(logits, batch["label"], reduction="none").mean().backward()
            torch.nn.utils.clip_grad_norm_(clipped, stage.trainer["gradient_clip_val"])
            optimizer.step()
            scheduler.step()
    return (time.perf_counter() - start) / steps, module.state_dict()


def difference(recipe: Recipe) -> float:
    """Return the largest difference between the final weights of both."""
    import torch

    ours, peer = fit_recipe(recipe)[1], fit_bare(recipe)[1]
    return torch.stack([(ours[name] - value).abs().max() for name, value in peer.items()]).max().item()
