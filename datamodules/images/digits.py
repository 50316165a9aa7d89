"""DigitsData: embedded grey images of ten classes, augmented in whole batches."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import DataModule
from datamodules.samples.embedded import LabelledImages, digits, fashion_mnist, small_digits

Source = Literal["mnist", "fashion", "small_digits"]
STATISTICS: dict[Source, tuple[float, float]] = {
    "mnist": (0.1307, 0.3081),
    "fashion": (0.2860, 0.3530),
    "small_digits": (0.3053, 0.3759),
}
"""Mean and standard deviation of a source's pixels in [0, 1]."""

FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")

AUGMENTATION, SPLIT, ORDER_OF_TEST = 1, 2, 3  # random streams of a seed; the order of the samples is stream 0


class DigitsData(DataModule):
    """Embedded grey images of ten classes: MNIST's digits, Fashion-MNIST or scikit-learn's small digits.

    A batch is ``{"image": (batch, 1, height, width) float32, normalised, "label": (batch,) int64}``. Test images are
    the same for all seeds: the last ones of a fixed permutation (Fashion-MNIST: of its test split). Training and then
    validation images are drawn per seed from the rest, so that the three never overlap.
    """

    class Config(DataModule.Config):
        """Which images, how many, and their augmentation."""

        source: Source = Field(
            "mnist", description="mnist: 5000 images, fashion: 70000, both 28x28; small_digits: 1797 of 8x8."
        )
        train_size: PositiveInt = Field(2000, description="Training images.")
        val_size: NonNegativeInt = Field(500, description="Validation images; 0 for no validation.")
        test_size: PositiveInt = Field(1000, description="Test images.")
        max_shift: NonNegativeInt = Field(2, description="Largest random shift of training images, in pixels per axis.")
        flip: bool = Field(False, description="Mirror half of the training images (clothes, not digits).")

    config: Config

    def module_arguments(self) -> dict[str, Any]:
        """Return number and names of the classes, size, the one channel, and mean and deviation of its pixels."""
        mean, std = STATISTICS[self.config.source]
        images = {"image_size": 8 if self.config.source == "small_digits" else 28, "in_chans": 1}
        names = FASHION if self.config.source == "fashion" else tuple("0123456789")
        return {"num_classes": 10, **images, "mean": [mean], "std": [std], "label_names": list(names)}

    def setup(self, stage: str) -> None:
        """Draw the three datasets.

        Raises:
            ValueError: the source has too few images.
        """
        if self.test_dataset is not None:
            return
        config = self.config
        rest, test = held_out(config.source, config.test_size)
        wanted, available = config.train_size + config.val_size, len(rest.labels)
        if wanted > available:
            raise ValueError(
                f"train_size={config.train_size} and val_size={config.val_size} are {wanted} images; besides "
                f"test_size={config.test_size}, source {config.source!r} has {available}"
            )
        drawn = torch.from_numpy(np.random.default_rng([config.seed, 0, SPLIT]).permutation(available))
        train, val = drawn[: config.train_size], drawn[config.train_size : wanted]
        statistics = STATISTICS[config.source]
        self.train_dataset = GreyImages(
            take(rest, train), statistics, seed=config.seed, max_shift=config.max_shift, flip=config.flip
        )
        self.val_dataset = GreyImages(take(rest, val), statistics) if config.val_size else None
        self.test_dataset = GreyImages(test, statistics)


class GreyImages(Dataset[Any]):
    """Normalised grey images, read in whole batches; shifts and flips are a function of (seed, epoch, index).

    Args:
        data: the images.
        statistics: mean and standard deviation of pixels in [0, 1].
        seed: of the augmentation.
        max_shift: largest shift in pixels; what enters is 0.
        flip: mirror half of the images.
    """

    def __init__(
        self,
        data: LabelledImages,
        statistics: tuple[float, float],
        *,
        seed: int = 0,
        max_shift: int = 0,
        flip: bool = False,
    ) -> None:
        height, width = data.images.shape[1:]
        padded = torch.nn.functional.pad(data.images, (max_shift,) * 4)
        self.windows = padded.unfold(1, height, 1).unfold(2, width, 1)  # a view: (size, shifts, shifts, height, width)
        self.labels = data.labels
        self.statistics = statistics
        self.seed = seed
        self.max_shift = max_shift
        self.flip = flip
        self.epoch = 0
        self._drawn: tuple[int, Tensor, Tensor] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation is used."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """Return a whole batch: ``image`` `(batch, 1, height, width)` float32, ``label`` `(batch,)` int64."""
        index = torch.tensor(indices)
        offsets, mirrored = self._augmentation()
        pixels = self.windows[index, offsets[index, 0], offsets[index, 1]].float()
        if self.flip:
            pixels = torch.where(mirrored[index, None, None], pixels.flip(-1), pixels)
        mean, std = self.statistics
        return {"image": pixels.sub_(255 * mean).div_(255 * std).unsqueeze(1), "label": self.labels[index]}

    def _augmentation(self) -> tuple[Tensor, Tensor]:
        """Return this epoch's shifts `(size, 2)` int64, counted from -max_shift, and which to mirror `(size,)` bool."""
        if self._drawn is None or self._drawn[0] != self.epoch:
            generator = np.random.default_rng([self.seed, self.epoch, AUGMENTATION])
            offsets = generator.integers(0, 2 * self.max_shift + 1, size=(len(self), 2))
            mirrored = generator.random(len(self)) < (0.5 if self.flip else 0)
            self._drawn = self.epoch, torch.from_numpy(offsets), torch.from_numpy(mirrored)
        return self._drawn[1:]


def held_out(source: Source, test_size: int) -> tuple[LabelledImages, LabelledImages]:
    """Return (all images but those for testing, test images); the same test images for all seeds.

    Raises:
        ValueError: the source has fewer images.
    """
    if source == "fashion":
        rest, pool = fashion_mnist("train"), fashion_mnist("test")
    else:
        pool = digits() if source == "mnist" else small_digits()
        rest = pool
    size = len(pool.labels)
    if test_size > size:
        raise ValueError(f"test_size={test_size}, but source {source!r} has {size} images to draw them from")
    order = torch.from_numpy(np.random.default_rng([0, 0, ORDER_OF_TEST]).permutation(size))
    test = take(pool, order[size - test_size :])
    return (rest if source == "fashion" else take(pool, order[: size - test_size])), test


def take(data: LabelledImages, index: Tensor) -> LabelledImages:
    """Return the images and classes at `index` `(n,)` int64, in its order."""
    return LabelledImages(data.images[index], data.labels[index])
