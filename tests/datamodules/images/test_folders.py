from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images.folders import FolderImages, ImageFolderData


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for split, size in (("train", 6), ("val", 3)):
        for name in ("cat", "dog"):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for number in range(size):
                pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path


def folder_data(folder: Path, **fields: object) -> ImageFolderData:
    data = ImageFolderData(ImageFolderData.Config(root=folder, image_size=32, batch_size=4, **fields))
    data.setup("fit")
    return data


@pytest.mark.parametrize("workers", [0, 2])
def test_image_folder_batches(folder: Path, workers: int) -> None:
    data = folder_data(folder, num_workers=workers)
    batches = list(data.train_dataloader())
    assert [batch["image"].shape for batch in batches] == [(4, 3, 32, 32)] * 3
    assert batches[0]["label"].dtype == torch.int64
    assert sorted(torch.cat([batch["label"] for batch in batches]).tolist()) == [0] * 6 + [1] * 6
    assert sum(len(batch["label"]) for batch in data.val_dataloader()) == 6
    statistics = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert data.module_arguments() == {"num_classes": 2, "in_chans": 3, **statistics}


def test_image_folder_augmentation_does_not_depend_on_workers(folder: Path) -> None:
    state = torch.get_rng_state()
    runs = []
    for workers in (0, 1, 2):
        loader = folder_data(folder, num_workers=workers, random_erasing=0.5).train_dataloader()
        runs.append(torch.stack([batch["image"] for _ in range(2) for batch in loader]))
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0][:3].sort().values, runs[0][3:].sort().values)  # epochs differ
    assert torch.equal(state, torch.get_rng_state())


def test_evaluation_images_are_not_augmented(folder: Path) -> None:
    dataset = folder_data(folder).val_dataset
    assert isinstance(dataset, FolderImages)
    assert torch.equal(dataset[1]["image"], dataset[1]["image"])
    assert [type(step).__name__ for step in dataset.transform.transforms] == [
        "Resize",
        "CenterCrop",
        "MaybeToTensor",
        "Normalize",
    ]


def test_training_transforms_are_deits(folder: Path) -> None:
    steps = {type(step).__name__: step for step in folder_data(folder).train_dataset.transform.transforms}
    assert list(steps) == [
        "RandomResizedCropAndInterpolation",
        "RandomHorizontalFlip",
        "RandAugment",
        "MaybeToTensor",
        "Normalize",
        "RandomErasing",
    ]
    assert steps["RandomResizedCropAndInterpolation"].scale == (0.08, 1.0)
    assert steps["RandomErasing"].probability == 0.25
    assert len(steps["RandAugment"].ops) == 15


def test_test_folder_is_used_where_it_exists(folder: Path) -> None:
    assert len(folder_data(folder).test_dataset) == 6
    for name in ("cat", "dog"):
        (folder / "test" / name).mkdir(parents=True)
        (folder / "val" / name / "0.png").rename(folder / "test" / name / "0.png")
    assert len(folder_data(folder).test_dataset) == 2


def test_missing_folder_is_named(tmp_path: Path) -> None:
    data = ImageFolderData(ImageFolderData.Config(root=tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=rf"no class folders in {tmp_path}/nowhere/train.*data.root"):
        data.module_arguments()
    with pytest.raises(FileNotFoundError, match="nowhere/train"):
        data.setup("fit")


def test_different_classes_are_refused(folder: Path) -> None:
    (folder / "val" / "cat").rename(folder / "val" / "bird")
    with pytest.raises(ValueError, match="differ in classes: bird, cat"):
        folder_data(folder)
