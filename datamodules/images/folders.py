"""ImageFolderData: a folder of images for each class, augmented by timm as DeiT does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch.utils.data import DataLoader, Dataset

from datamodules.base import DataModule
from datamodules.images.files import OnBad, image_paths, labelled, read_image, readable, subfolders
from datamodules.loader import seeded

Colours = tuple[float, float, float]
DEFAULTS: dict[str, Any] = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_share": 0.875,
    "crop_mode": "center",
}
"""How images are prepared where neither the configuration nor a model's weights say it: ImageNet's statistics."""


class ImageFolderData(DataModule):
    """Images in ``root/train/<class>/`` and ``root/val/<class>/``, augmented by timm; the defaults are DeiT's.

    A batch is ``{"image": (batch, 3, image_size, image_size) float32, normalised, "label": (batch,) int64}``. Tests
    use ``root/test/`` where it has class folders, otherwise the validation images. Batches to predict have ``file``,
    the images' paths, in place of ``label``. An image's augmentation is a function of (seed, epoch, index).

    How images are prepared (`mean`, `std`, `interpolation`, `crop_share`, `crop_mode`) is what the configuration says,
    else what the trained module says (`preprocessing`: what its pretrained weights or checkpoint were trained with),
    else `DEFAULTS`. It is settled in `setup()`; without a trainer there is no module to ask.
    """

    class Config(DataModule.Config):
        """Where the images are, and their augmentation (DeiT, arXiv:2012.12877, table 9)."""

        root: Path = Field(description="Folder with train/ and val/, each with one folder of images per class.")
        predict_root: Path | None = Field(
            None,
            description="Images to predict: a folder, with or without folders in it, or a file; null: those of "
            "root/test, or else of root/val.",
        )
        on_bad_file: OnBad = Field(
            "error",
            description="At a file that is no readable image: error stops; skip reads all files once before training, "
            "leaves such files out and counts them.",
        )
        num_workers: NonNegativeInt = Field(8, description="Processes that load data; 0 loads in the training process.")
        image_size: PositiveInt = Field(224, description="Height and width of the images the model sees, in pixels.")
        interpolation: Literal["bicubic", "bilinear", "random"] | None = Field(
            None, description="Of resized images; null: as the model's weights were trained, else bicubic."
        )
        min_area: float = Field(0.08, gt=0, le=1, description="Smallest share of an image's area in a training crop.")
        horizontal_flip: float = Field(0.5, ge=0, le=1, description="Probability of mirroring a training image.")
        auto_augment: str | None = Field(
            "rand-m9-mstd0.5-inc1", description="timm's policy, e.g. RandAugment of magnitude 9; null for none."
        )
        color_jitter: NonNegativeFloat = Field(0.3, description="Strength of colour jitter; only without auto_augment.")
        random_erasing: float = Field(
            0.25, ge=0, le=1, description="Probability of erasing a part of a training image."
        )
        crop_share: float | None = Field(
            None,
            gt=0,
            le=1,
            description="Share of the resized image kept in evaluation; null: as the model's weights, else 0.875.",
        )
        crop_mode: Literal["center", "squash", "border"] | None = Field(
            None, description="How evaluation makes an image square; null: as the model's weights, else center."
        )
        mean: Colours | None = Field(
            None, description="Of each colour, in [0, 1]; null: as the model's weights were trained, else ImageNet's."
        )
        std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = Field(
            None, description="Of each colour, in [0, 1]; null: as the model's weights were trained, else ImageNet's."
        )

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.predict_dataset: UnlabelledImages | None = None
        self.preprocessing: dict[str, Any] | None = None
        """How images are prepared, by field; known after `setup()`."""

    def module_arguments(self) -> dict[str, Any]:
        """Return number and names of the class folders, three channels, the images' size, and how they are prepared.

        ``defaulted`` names the fields of preparation that nobody chose: pretrained weights replace them. After
        `setup()` there are none.

        Raises:
            FileNotFoundError: ``root/train`` is missing, or has no folder.
        """
        classes = class_folders(self.config.root, "train")
        prepared = self.preprocessing or self._prepared({})
        if prepared["interpolation"] == "random":  # of training; evaluation has one
            prepared = {**prepared, "interpolation": DEFAULTS["interpolation"]}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in prepared.items()}
        defaulted = [name for name in DEFAULTS if getattr(self.config, name) is None]
        told = {"num_classes": len(classes), "in_chans": 3, "image_size": self.config.image_size}
        open_fields = {"defaulted": defaulted} if defaulted and self.preprocessing is None else {}
        return {**told, "label_names": classes, **plain, **open_fields}

    def setup(self, stage: str) -> None:
        """List the images; to predict, only those to predict.

        Raises:
            FileNotFoundError: a folder is missing, or a class has no image.
            ValueError: the splits have different classes, or the trained model takes other images or classes.
        """
        if stage == "predict":
            self._settle(None)
            self.predict_dataset = self._to_predict()
            return
        if self.train_dataset is not None:
            return
        root = self.config.root
        classes = class_folders(root, "train")
        splits = ["val", *(["test"] if subfolders(root / "test") else [])]
        if len(splits) == 1 and image_paths(root / "test"):
            rank_zero_info(f"{root}/test has no class folders: its images are predicted, and the tests use {root}/val")
        for split in splits:
            if different := set(classes) ^ set(class_folders(root, split)):
                raise ValueError(
                    f"{root}/train and {root}/{split} differ in classes: {', '.join(sorted(different)[:5])}"
                )
        self._settle(classes)
        self.train_dataset = self._images("train", classes, training=True)
        self.val_dataset = self._images("val", classes)
        self.test_dataset = self._images("test", classes) if "test" in splits else self.val_dataset

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the images to predict: without labels, with their ``file``."""
        return self.test_dataloader() if self.predict_dataset is None else self.eval_dataloader(self.predict_dataset)

    def _settle(self, classes: Sequence[str] | None) -> None:
        """Settle how images are prepared, and let the trained module check their size and classes."""
        module: Any = self.trainer.lightning_module if self.trainer is not None else None
        if hasattr(module, "check_images"):
            module.check_images(self.config.image_size, classes)
        self.preprocessing = self._prepared(getattr(module, "preprocessing", {}))

    def _prepared(self, of_module: dict[str, Any]) -> dict[str, Any]:
        prepared = {}
        for name, default in DEFAULTS.items():
            chosen = getattr(self.config, name)
            prepared[name] = of_module.get(name, default) if chosen is None else chosen
        return prepared

    def _images(self, split: str, classes: Sequence[str], *, training: bool = False) -> FolderImages:
        folder, skip = self.config.root / split, self.config.on_bad_file
        label_of = dict(labelled(folder, classes))
        kept = [(path, label_of[path]) for path in readable(list(label_of), skip, str(folder))]
        if missing := set(range(len(classes))) - {label for _, label in kept}:
            names = ", ".join(classes[number] for number in sorted(missing))
            raise FileNotFoundError(f"{folder}: no image of class {names} can be read; put others there")
        return FolderImages(kept, self._transform(training), seed=self.config.seed if training else None)

    def _to_predict(self) -> UnlabelledImages:
        config = self.config
        folder = config.predict_root or next(
            (config.root / split for split in ("test", "val") if image_paths(config.root / split)), config.root / "test"
        )
        paths = [folder] if folder.is_file() else image_paths(folder)
        kept = readable(paths, config.on_bad_file, str(folder))
        if not kept:
            raise FileNotFoundError(
                f"no image to predict in {folder.absolute()}: set data.predict_root to a folder of them"
            )
        return UnlabelledImages(kept, self._transform(False))

    def _transform(self, training: bool) -> Any:
        from timm.data import create_transform

        config, prepared = self.config, self.preprocessing or self._prepared({})
        interpolation = prepared["interpolation"]
        return create_transform(
            config.image_size,
            is_training=training,
            scale=(config.min_area, 1.0),
            hflip=config.horizontal_flip,
            color_jitter=config.color_jitter,
            auto_augment=config.auto_augment,
            interpolation=interpolation if training or interpolation != "random" else DEFAULTS["interpolation"],
            mean=tuple(prepared["mean"]),
            std=tuple(prepared["std"]),
            re_prob=config.random_erasing,
            re_mode="pixel",
            crop_pct=prepared["crop_share"],
            crop_mode=prepared["crop_mode"],
        )


class FolderImages(Dataset[Any]):
    """Labelled images, transformed; with a seed, random transforms are a function of (seed, epoch, index).

    Args:
        images: path and class number of each.
        transform: of an RGB image to a tensor.
        seed: of random transforms; None for none.
    """

    def __init__(self, images: Sequence[tuple[Path, int]], transform: Any, *, seed: int | None) -> None:
        # Two plain arrays: a million Path objects would be copied, page by page, into every worker process.
        self.files = [str(path) for path, _ in images]
        self.labels = [label for _, label in images]
        self.transform = transform
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation is used."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = read_image(self.files[index]), self.labels[index]
        if self.seed is None:
            return {"image": self.transform(image), "label": label}
        with seeded(self.seed, self.epoch, index):
            return {"image": self.transform(image), "label": label}


class UnlabelledImages(Dataset[Any]):
    """Images without labels, transformed: ``image`` (3, size, size) float32 and ``file``, the path."""

    def __init__(self, paths: Sequence[Path], transform: Any) -> None:
        self.files = [str(path) for path in paths]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.transform(read_image(self.files[index])), "file": self.files[index]}


def class_folders(root: Path, split: str) -> list[str]:
    """Return the sorted names of the class folders of a split, without hidden ones.

    Raises:
        FileNotFoundError: there is none; the message names the folder searched.
    """
    folder = (root / split).absolute()
    names = subfolders(folder)
    if not names:
        raise FileNotFoundError(f"no class folders in {folder}: put images into {folder}/<class>/, or change data.root")
    return names
