"""ImageFolderData: a folder of images for each class, augmented by timm as DeiT does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch.utils.data import Dataset

from datamodules.base import DataModule
from datamodules.loader import seeded


class ImageFolderData(DataModule):
    """Images in ``root/train/<class>/`` and ``root/val/<class>/``, augmented by timm; the defaults are DeiT's.

    A batch is ``{"image": (batch, 3, image_size, image_size) float32, normalised, "label": (batch,) int64}``. Tests
    use ``root/test/`` where it exists, otherwise the validation images. An image's augmentation is a function of
    (seed, epoch, index).
    """

    class Config(DataModule.Config):
        """Where the images are, and their augmentation (DeiT, arXiv:2012.12877, table 9)."""

        root: Path = Field(description="Folder with train/ and val/, each with one folder of images per class.")
        num_workers: NonNegativeInt = Field(8, description="Processes that load data; 0 loads in the training process.")
        image_size: PositiveInt = Field(224, description="Height and width of the images the model sees, in pixels.")
        interpolation: Literal["bicubic", "bilinear", "random"] = Field("bicubic", description="Of resized images.")
        min_area: float = Field(0.08, gt=0, le=1, description="Smallest share of an image's area in a training crop.")
        horizontal_flip: float = Field(0.5, ge=0, le=1, description="Probability of mirroring a training image.")
        auto_augment: str | None = Field(
            "rand-m9-mstd0.5-inc1", description="timm's policy, e.g. RandAugment of magnitude 9; null for none."
        )
        color_jitter: NonNegativeFloat = Field(0.3, description="Strength of colour jitter; only without auto_augment.")
        random_erasing: float = Field(
            0.25, ge=0, le=1, description="Probability of erasing a part of a training image."
        )
        crop_share: float = Field(0.875, gt=0, le=1, description="Share of the resized image kept in evaluation.")
        mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="Of each colour, in [0, 1].")
        std: tuple[float, float, float] = Field((0.229, 0.224, 0.225), description="Of each colour, in [0, 1].")

    config: Config

    def module_arguments(self) -> dict[str, Any]:
        """Return the number of class folders, the three channels, and mean and standard deviation of their pixels.

        Raises:
            FileNotFoundError: ``root/train`` is missing, or has no folder.
        """
        classes = class_folders(self.config.root, "train")
        statistics = {"mean": list(self.config.mean), "std": list(self.config.std)}
        return {"num_classes": len(classes), "in_chans": 3, **statistics}

    def setup(self, stage: str) -> None:
        """List the images.

        Raises:
            FileNotFoundError: a folder is missing, or a class has no image.
            ValueError: the splits have different classes.
        """
        if self.train_dataset is not None:
            return
        root = self.config.root
        classes = class_folders(root, "train")
        splits = ["val", *(["test"] if (root / "test").is_dir() else [])]
        for split in splits:
            if different := set(classes) ^ set(class_folders(root, split)):
                raise ValueError(
                    f"{root}/train and {root}/{split} differ in classes: {', '.join(sorted(different)[:5])}"
                )
        self.train_dataset = self._images("train", training=True)
        self.val_dataset, self.test_dataset = self._images("val"), self._images(splits[-1])

    def _images(self, split: str, *, training: bool = False) -> FolderImages:
        from timm.data import create_transform

        config = self.config
        transform = create_transform(
            config.image_size,
            is_training=training,
            scale=(config.min_area, 1.0),
            hflip=config.horizontal_flip,
            color_jitter=config.color_jitter,
            auto_augment=config.auto_augment,
            interpolation=config.interpolation if training or config.interpolation != "random" else "bicubic",
            mean=config.mean,
            std=config.std,
            re_prob=config.random_erasing,
            re_mode="pixel",
            crop_pct=config.crop_share,
        )
        return FolderImages(config.root / split, transform, seed=config.seed if training else None)


class FolderImages(Dataset[Any]):
    """Images of class folders, transformed; with a seed, random transforms are a function of (seed, epoch, index)."""

    def __init__(self, folder: Path, transform: Any, *, seed: int | None) -> None:
        from torchvision.datasets import ImageFolder

        self.images = ImageFolder(str(folder))
        self.transform = transform
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation is used."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.images[index]
        if self.seed is None:
            return {"image": self.transform(image), "label": label}
        with seeded(self.seed, self.epoch, index):
            return {"image": self.transform(image), "label": label}


def class_folders(root: Path, split: str) -> list[str]:
    """Return the sorted names of the class folders of a split.

    Raises:
        FileNotFoundError: there is none; the message names the folder searched.
    """
    folder = (root / split).absolute()
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not names:
        raise FileNotFoundError(f"no class folders in {folder}: put images into {folder}/<class>/, or change data.root")
    return names
