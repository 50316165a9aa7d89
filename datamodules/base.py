"""DataModule: the base of our datamodules; a subclass names its datasets, the base builds resumable loaders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from pydantic import Field, NonNegativeInt, PositiveInt
from torch.utils.data import DataLoader, Dataset

from datamodules.calibration import calibration_batches, calibration_sequences
from datamodules.loader import Collate, Order, ResumableLoader, collate
from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.common.config import Configurable


class DataModule(Configurable, LightningDataModule):
    """Data with its configuration; a batch is a dictionary of tensors.

    A subclass sets `train_dataset`, and where it has them `val_dataset` and `test_dataset`, in `setup()`, and may
    replace `collate_fn`. What the model must know of the data is told by `module_arguments()`.

    Args:
        config: the configuration.
    """

    class Config(BaseConfig):
        """Fields every datamodule has."""

        batch_size: PositiveInt = Field(64, description="Samples per training batch, on each process.")
        eval_batch_size: PositiveInt = Field(250, description="Samples per batch of validation and test.")
        num_workers: NonNegativeInt = Field(0, description="Processes that load data; 0 loads in the training process.")
        seed: NonNegativeInt = Field(0, description="Seed of the samples' order, their augmentation and their split.")
        drop_last: bool = Field(True, description="Leave out an epoch's last training batch if it is smaller.")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.collate_fn: Collate = collate
        self.train_dataset: Dataset[Any] | None = None
        self.val_dataset: Dataset[Any] | None = None
        self.test_dataset: Dataset[Any] | None = None

    def module_arguments(self) -> dict[str, Any]:
        """Return plain values that the module is built with; known without `setup()`."""
        return {}

    def calibration_batches(self, n: int, seed: int) -> Iterator[Any]:
        """Return `n` batches for a method's calibration; see `datamodules.calibration.calibration_batches`."""
        return calibration_batches(self, n, seed)

    def calibration_sequences(self, seed: int, *, expected: int = 1, source: str = "") -> Iterator[dict[str, Any]]:
        """Stream samples for a method's calibration; see `datamodules.calibration.calibration_sequences`.

        Args:
            seed: of the order.
            expected: samples that will be taken, about.
            source: another text to read; empty: this data.

        Raises:
            ValueError: a source is given, and this datamodule cannot read another one.
        """
        dataset = self.calibration_source(source) if source else None
        return calibration_sequences(self, seed, expected=expected, dataset=dataset)

    def calibration_source(self, source: str) -> Dataset[Any]:
        """Return the samples of another source than the datamodule's own."""
        raise ValueError(
            f"calibration.source={source!r}: {type(self).__name__} reads no other text; leave it empty, or take a "
            "datamodule of text"
        )

    def train_dataloader(self) -> ResumableLoader:
        """Return the resumable loader of `train_dataset`, of this process's share."""
        trainer = self.trainer
        share = (trainer.distributed_sampler_kwargs if trainer is not None else None) or {}
        shuffle = not getattr(trainer, "overfit_batches", 0)  # overfitting wants the same batches every epoch
        world_size = share.get("num_replicas", 1)
        return ResumableLoader(
            _present(self.train_dataset, "train_dataset", self),
            self.config.batch_size,
            seed=self.config.seed,
            shuffle=shuffle,
            drop_last=self.config.drop_last,
            num_workers=self.config.num_workers,
            rank=share.get("rank", 0),
            world_size=world_size,
            collate_fn=self.collate_fn,
            pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
            order=self.train_order(self.config.batch_size * world_size) if shuffle else None,
        )

    def train_order(self, global_batch_size: int) -> Order | None:
        """Return the order of an epoch's training samples where it is not any shuffled one; see `ResumableLoader`."""
        return None

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the loader of `val_dataset`, or none if there is no such dataset."""
        return [] if self.val_dataset is None else self.eval_dataloader(self.val_dataset)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the loader of `test_dataset`."""
        return self.eval_dataloader(_present(self.test_dataset, "test_dataset", self))

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the loader of `test_dataset`."""
        return self.test_dataloader()

    def eval_dataloader(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        """Return a loader in the dataset's order, which Lightning shards over processes."""
        workers = self.config.num_workers
        return DataLoader(
            dataset,
            batch_size=self.config.eval_batch_size,
            num_workers=workers,
            collate_fn=self.collate_fn,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # its own: validation must not move the training's random numbers
        )


def _present(dataset: Dataset[Any] | None, name: str, data: DataModule) -> Dataset[Any]:
    if dataset is None:
        raise ValueError(f"{type(data).__name__} has no {name}: call setup() first, or give it one there")
    return dataset
