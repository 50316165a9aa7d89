"""Calibration batches: a few batches of training data, read without a trace in the training that follows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import IterableDataset

from datamodules.loader import fetch


def calibration_batches(datamodule: LightningDataModule, n: int, seed: int) -> Iterator[Any]:
    """Return `n` batches of the training loader's size, drawn without replacement; the same on all processes.

    They come from the datamodule's ``calibration_dataset``, if it reserves one, otherwise from the training data.
    Neither the training's random numbers nor its order of samples change. Augmentation is that of epoch 0.

    Args:
        datamodule: any LightningDataModule, set up, whose training loader reads a map-style dataset.
        n: number of batches.
        seed: of the drawing.

    Raises:
        TypeError: the training loader has no map-style dataset, or no batch size.
        ValueError: the dataset has fewer than `n` batches.
    """
    with isolate_rng(include_cuda=False):
        loader: Any = datamodule.train_dataloader()
    reserved = getattr(datamodule, "calibration_dataset", None)
    dataset: Any = getattr(loader, "dataset", None) if reserved is None else reserved
    sizes = [getattr(part, "batch_size", None) for part in (loader, getattr(loader, "batch_sampler", None))]
    batch_size = next((size for size in sizes if size), None)
    map_style = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if not (map_style and batch_size) or isinstance(dataset, IterableDataset):
        raise TypeError(
            f"{type(datamodule).__name__} cannot be calibrated on: its training loader ({type(loader).__name__}) needs "
            "a dataset with __getitem__ and __len__, and a batch size"
        )
    if n * batch_size > len(dataset):
        raise ValueError(
            f"calibration wants {n} batches of {batch_size} = {n * batch_size} samples, the "
            f"{'training' if reserved is None else 'calibration'} data has {len(dataset)}: lower the number of "
            "batches or the batch size"
        )
    chosen = np.random.default_rng(seed).choice(len(dataset), size=(n, batch_size), replace=False)
    return _read(dataset, chosen.tolist(), loader.collate_fn)


def _read(dataset: Any, chosen: list[list[int]], collate_fn: Any) -> Iterator[Any]:
    for indices in chosen:
        # Only reading is isolated: the block must be left before the caller goes on.
        with isolate_rng(include_cuda=False):
            if hasattr(dataset, "set_epoch"):
                dataset.set_epoch(0)
            batch = collate_fn(fetch(dataset, indices))
        yield batch
