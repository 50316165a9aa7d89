"""What callbacks that change a model measure it by: held-out batches, the cost of a forward pass, its device."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pangu_modules.common.parameters import count_parameters
from pangu_modules.training.objectives import Batch
from pangu_modules.training.randomness import unchanged_randomness

TIMED_TOKENS = 256


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Move the model to a device for a while."""
    home = next(model.parameters()).device
    model.to(device)
    try:
        yield
    finally:
        model.to(home)


def held_out_batches(trainer: Trainer) -> list[Batch]:
    """Return the batches of the datamodule's test set that the trainer's test will read; none without one."""
    data: Any = getattr(trainer, "datamodule", None)
    if getattr(data, "test_dataset", None) is None:
        return []
    with unchanged_randomness():
        loader = data.test_dataloader()
        limit = trainer.limit_test_batches
        count = limit if isinstance(limit, int) else round(limit * len(loader))
        return list(itertools.islice(loader, count))


@torch.no_grad()
def costs_of(models: Mapping[str, nn.Module], batches: Sequence[Batch]) -> dict[str, dict[str, int | float]]:
    """Return each model's parameters, operations per token (a multiply-add is two) and tokens per second.

    The speed is that of a forward pass over 256 tokens: the best of three, the models taken in turn.
    """
    costs: dict[str, dict[str, int | float]] = {
        name: {"parameters": count_parameters(model)} for name, model in models.items()
    }
    if not batches:
        return costs
    ids = torch.cat([batch["input_ids"].flatten() for batch in batches])[:TIMED_TOKENS]
    ids = ids.view(-1, next(size for size in (128, 64, 16, 1) if len(ids) % size == 0))
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(4):
        for name, model in models.items():
            with FlopCounterMode(display=False) if turn == 0 else nullcontext() as counter:
                took = _seconds(model, ids)
            if counter is not None:
                costs[name]["flops_per_token"] = counter.get_total_flops() // ids.numel()
            else:
                seconds[name].append(took)
    for name, times in seconds.items():
        costs[name]["tokens_per_second"] = ids.numel() / min(times)
    return costs


def _seconds(model: Any, ids: Tensor) -> float:
    training, ids = model.training, ids.to(next(model.parameters()).device)
    model.eval()
    start = time.perf_counter()
    float(model(input_ids=ids, use_cache=False).logits[0, 0, 0])  # waits for an accelerator
    took = time.perf_counter() - start
    model.train(training)
    return took
