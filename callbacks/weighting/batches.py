"""Batches for DWM's updates: batch n is a function of (seed, n), so that there is no position to store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pangu_modules.common.errors import UsageError
from pangu_modules.training.randomness import unchanged_randomness


class DrawnBatches:
    """Batches of a dataset, epoch after epoch, each in an order of its own; reading one draws no random numbers.

    Args:
        dataset: map-style dataset.
        batch_size: sequences per batch of all processes together; at most the dataset.
        collate_fn: joins samples into a batch.
        entropy: seeds of the order, besides the epoch.
        rank: this process, which reads every `world_size`-th sequence of a batch.
        world_size: number of processes.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        collate_fn: Callable[[Any], Any],
        entropy: tuple[int, ...],
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.dataset, self.collate_fn, self.entropy = dataset, collate_fn, entropy
        self.size = len(dataset)  # type: ignore[arg-type]
        self.batch_size = min(batch_size, self.size)
        self.rank, self.world_size = rank, world_size

    def indices(self, n: int) -> list[int]:
        """Return the indices of this process's part of batch `n`; an epoch's end that fills no batch is left out."""
        epoch, position = divmod(n, self.size // self.batch_size)
        order = np.random.default_rng([*self.entropy, epoch]).permutation(self.size)
        batch = order[position * self.batch_size : (position + 1) * self.batch_size]
        return [int(index) for index in batch[self.rank :: self.world_size]]

    def __getitem__(self, n: int) -> Any:
        """Return batch `n`."""
        with unchanged_randomness(accelerator=True):
            loader = DataLoader(
                self.dataset,
                batch_sampler=[self.indices(n)],
                collate_fn=self.collate_fn,
                generator=torch.Generator(),
            )
            return next(iter(loader))


def data_source(trainer: Trainer, module: LightningModule) -> Any:
    """Return the datamodule, or the module where its own loaders feed the run.

    Raises:
        UsageError: the loaders were given to `fit` one by one.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if data is not None:
        return data
    if is_overridden("train_dataloader", module) and is_overridden("val_dataloader", module):
        return module
    raise UsageError("DWM reads training and target data itself: give fit a datamodule instead of loaders")


def training_batches(source: Any, seed: int, *, rank: int, world_size: int) -> DrawnBatches:
    """Return batches of the training data of the training loader's size, drawn apart from it.

    Raises:
        UsageError: the loader has no map-style dataset or no batch size.
    """
    loader = _first(source.train_dataloader)
    size = getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    if not size or not _map_style(getattr(loader, "dataset", None)):
        raise UsageError(
            f"{type(source).__name__}: updates between training steps draw batches of their own from a training loader "
            'with a map-style dataset and a batch size; with other data set lm_in_phase_a="real" or mode="online"'
        )
    return DrawnBatches(
        loader.dataset, size * world_size, loader.collate_fn, (seed, 1), rank=rank, world_size=world_size
    )


def target_batches(source: Any, name: str, batch_size: int, seed: int, *, rank: int, world_size: int) -> DrawnBatches:
    """Return batches of the target: the validation data, or the datamodule's dataset `name`.

    Raises:
        UsageError: there is no such dataset, it is empty, or it is the training dataset.
    """
    train = _first(source.train_dataloader)
    loader = _first(source.val_dataloader) if name == "val" else train
    dataset: Any = getattr(loader, "dataset", None) if name == "val" else getattr(source, f"{name}_dataset", None)
    if not _map_style(dataset):
        there = sorted(key.removesuffix("_dataset") for key, value in vars(source).items() if _is_dataset(key, value))
        raise UsageError(
            f"target={name!r}: {type(source).__name__} has no such map-style dataset; it has "
            f"{', '.join(there) or 'none'}"
        )
    if len(dataset) == 0:
        raise UsageError(f"target={name!r}: the dataset is empty, so there is nothing to get better on")
    if dataset is getattr(train, "dataset", None):
        raise UsageError(
            f"target={name!r} is the training dataset itself: what training should get better on must be held out"
        )
    if min(batch_size, len(dataset)) < world_size:
        raise UsageError(f"val_batch_size={batch_size}: each of {world_size} processes needs a sequence of the target")
    return DrawnBatches(dataset, batch_size, loader.collate_fn, (seed, 2), rank=rank, world_size=world_size)


def _first(build: Callable[[], Any]) -> Any:
    """Build loaders and return the first, or None; building may draw random numbers, which are put back."""
    with unchanged_randomness(accelerator=True):
        loaders = build()
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    return (loaders[0] if loaders else None) if isinstance(loaders, (list, tuple)) else loaders


def _map_style(dataset: Any) -> bool:
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)


def _is_dataset(key: str, value: Any) -> bool:
    return key.endswith("_dataset") and value is not None and key not in ("train_dataset", "test_dataset")
