"""Calibration sequences: training data read for a method's statistics, without a trace in the training that follows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import IterableDataset

from datamodules.loader import fetch


def calibration_sequences(
    datamodule: LightningDataModule, seed: int, *, expected: int = 1, dataset: Any = None
) -> Iterator[dict[str, Any]]:
    """Stream all sequences once, in an order drawn from the seed, the same on all processes; the taker stops.

    They come from `dataset`, else from the datamodule's ``calibration_dataset``, if it reserves one, else from the
    training data. Neither the training's random numbers nor its order of samples change. Augmentation is that of
    epoch 0.

    The first sequences are those that `calibration_batches` draws for `expected` sequences: as many whole batches as
    hold them. A draw of more sequences is another draw, not a longer one, so the number is part of what decides.

    Args:
        datamodule: any LightningDataModule, set up, whose training loader reads a map-style dataset.
        seed: of the drawing.
        expected: sequences that will be taken, about; all can be.
        dataset: map-style dataset to read instead of the datamodule's own.

    Raises:
        TypeError: the training loader has no map-style dataset, or no batch size.
    """
    _, own, size = _source(datamodule)
    dataset = own if dataset is None else dataset
    drawn = min(-(-expected // size), len(dataset) // size) * size
    first = np.random.default_rng(seed).choice(len(dataset), size=(drawn // size, size), replace=False).ravel()
    rest = np.setdiff1d(np.arange(len(dataset)), first)
    order = np.concatenate([first, np.random.default_rng([seed, 1]).permutation(rest)])
    return (row for indices in _groups(order, size) for row in rows_of(_read(dataset, indices)))


def calibration_batches(datamodule: LightningDataModule, n: int, seed: int) -> Iterator[Any]:
    """Return `n` batches of the training loader's size, drawn without replacement; the same on all processes.

    They are those of `calibration_sequences`, joined as the training loader joins them.

    Raises:
        TypeError: the training loader has no map-style dataset, or no batch size.
        ValueError: the dataset has fewer than `n` batches.
    """
    loader, dataset, size = _source(datamodule)
    if n * size > len(dataset):
        reserved = getattr(datamodule, "calibration_dataset", None) is not None
        raise ValueError(
            f"calibration wants {n} batches of {size} = {n * size} samples, the "
            f"{'calibration' if reserved else 'training'} data has {len(dataset)}: lower the number of batches or the "
            "batch size"
        )
    chosen = np.random.default_rng(seed).choice(len(dataset), size=(n, size), replace=False)
    return (_read(dataset, indices.tolist(), loader.collate_fn) for indices in chosen)


def rows_of(samples: Any) -> list[dict[str, Any]]:
    """Return the samples of a dataset one by one, also where it returned them as a whole batch."""
    if not isinstance(samples, dict):
        return list(samples)
    count = next(len(value) for value in samples.values() if isinstance(value, Tensor))
    return [{name: value[row] for name, value in samples.items()} for row in range(count)]


def _source(datamodule: LightningDataModule) -> tuple[Any, Any, int]:
    """Return the training loader, the dataset to calibrate on, and the loader's batch size."""
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
    return loader, dataset, batch_size


def _groups(order: np.ndarray, size: int) -> Iterator[list[int]]:
    return (order[start : start + size].tolist() for start in range(0, len(order), size))


def _read(dataset: Any, indices: list[int], collate_fn: Any = None) -> Any:
    # Only reading is isolated: the block must be left before the caller goes on.
    with isolate_rng(include_cuda=False):
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(0)
        samples = fetch(dataset, indices)
        return samples if collate_fn is None else collate_fn(samples)
