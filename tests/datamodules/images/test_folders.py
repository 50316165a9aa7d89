import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from datamodules.images.folders import FolderImages, ImageFolderData
from pangu_modules.common.errors import UsageError
from pangu_modules.vision.classifier import ImageClassifier


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
    prepared = {**statistics, "interpolation": "bicubic", "crop_share": 0.875, "crop_mode": "center"}
    images = {"num_classes": 2, "label_names": ["cat", "dog"], "in_chans": 3, "image_size": 32}
    assert data.module_arguments() == {**images, **prepared}
    fresh = ImageFolderData(ImageFolderData.Config(root=folder, image_size=32, crop_share=0.9))
    open_fields = ["mean", "std", "interpolation", "crop_mode"]
    assert fresh.module_arguments() == {**images, **prepared, "crop_share": 0.9, "defaulted": open_fields}


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


def test_images_are_in_the_order_of_torchvision(folder: Path) -> None:
    from torchvision.datasets import ImageFolder

    (folder / "train" / "cat" / "deep").mkdir()
    for number in (0, 3):
        (folder / "train" / "cat" / f"{number}.png").rename(folder / "train" / "cat" / "deep" / f"{number}.png")
    dataset = folder_data(folder).train_dataset
    assert list(zip(dataset.files, dataset.labels, strict=True)) == ImageFolder(folder / "train").samples


def test_hidden_folders_are_no_classes(folder: Path) -> None:
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    data = folder_data(folder)
    assert data.module_arguments()["label_names"] == ["cat", "dog"]
    (folder / "train" / "zebra").mkdir()
    (folder / "val" / "zebra").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image in .*train/zebra: put some there"):
        folder_data(folder)


def test_a_damaged_image_is_named_or_left_out(folder: Path) -> None:
    (folder / "train" / "cat" / "3.png").write_bytes(b"<html>")
    data = folder_data(folder, num_workers=0, drop_last=False)
    with pytest.raises(UsageError, match=r"train/cat/3\.png cannot be read as an image"):
        list(data.train_dataloader())
    with pytest.warns(UserWarning, match=r"train: 1 of 12 files left out"):
        data = folder_data(folder, num_workers=0, drop_last=False, on_bad_file="skip")
    assert sum(len(batch["label"]) for batch in data.train_dataloader()) == 11
    for name in range(6):
        (folder / "train" / "cat" / f"{name}.png").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="6 of 12 files left out"),
        pytest.raises(FileNotFoundError, match="no image of class cat can be read"),
    ):
        folder_data(folder, on_bad_file="skip")


# Images without labels.


def predicted(folder: Path, **fields: object) -> list[str]:
    data = ImageFolderData(ImageFolderData.Config(root=folder, image_size=32, num_workers=0, **fields))
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert all(set(batch) == {"image", "file"} for batch in batches)
    assert batches[0]["image"].shape[1:] == (3, 32, 32)
    return [str(Path(name).relative_to(folder)) for batch in batches for name in batch["file"]]


def test_images_to_predict_need_no_labels(folder: Path) -> None:
    assert predicted(folder) == [f"val/{name}/{number}.png" for name in ("cat", "dog") for number in range(3)]
    (folder / "test" / "deep").mkdir(parents=True)
    (folder / "val" / "cat" / "0.png").rename(folder / "test" / "b.png")
    assert predicted(folder) == ["test/b.png"]
    (folder / "new").mkdir()
    (folder / "val" / "cat" / "1.png").rename(folder / "new" / "1.png")
    assert predicted(folder, predict_root=folder / "new") == ["new/1.png"]
    assert predicted(folder, predict_root=folder / "new" / "1.png") == ["new/1.png"]
    with pytest.raises(FileNotFoundError, match=r"no image to predict in .*nowhere: set data\.predict_root"):
        predicted(folder, predict_root=folder / "nowhere")


def test_predicting_needs_no_training_images(folder: Path) -> None:
    (folder / "val").rename(folder / "new")
    shutil.rmtree(folder / "train")
    assert len(predicted(folder, predict_root=folder / "new")) == 6


def test_a_test_folder_without_classes_is_predicted_and_not_tested(folder: Path) -> None:
    (folder / "test").mkdir()
    (folder / "val" / "cat" / "0.png").rename(folder / "test" / "0.png")
    assert len(folder_data(folder).test_dataset) == 5
    assert predicted(folder) == ["test/0.png"]


# What the model says.


class Model(LightningModule):
    """A module that knows how its weights want images."""

    preprocessing = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "crop_share": 1.0}

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[object] = []
        self.inputs: list[torch.Tensor] = []

    def check_images(self, image_size: int, label_names: list[str] | None) -> None:
        self.asked.append((image_size, label_names))

    def predict_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.inputs.append(batch["image"])

    def test_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.inputs.append(batch["image"])


def seen_by(model: Model, folder: Path, **fields: object) -> tuple[ImageFolderData, torch.Tensor]:
    data = ImageFolderData(ImageFolderData.Config(root=folder, image_size=32, num_workers=0, **fields))
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.test(model, datamodule=data, verbose=False)
    return data, model.inputs[0]


def test_fields_that_are_empty_come_from_the_model(folder: Path) -> None:
    model = Model()
    data, images = seen_by(model, folder)
    assert model.asked == [(32, ["cat", "dog"])]
    with Image.open(folder / "val" / "cat" / "0.png") as image:
        resized = image.resize((40, 32), Image.Resampling.BILINEAR).crop((4, 0, 36, 32))
    expected = (torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255 - 0.5) / 0.25
    torch.testing.assert_close(images[0], expected, rtol=0, atol=1e-6)
    assert data.module_arguments()["mean"] == [0.5, 0.5, 0.5]
    assert "defaulted" not in data.module_arguments()


def test_pretrained_weights_decide_from_the_first_batch_on(folder: Path) -> None:
    """DeiT's neighbour of timm was trained with mean and deviation 0.5, which no field here says."""
    import timm

    name, size = "vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    torch.save(timm.create_model(name, num_classes=2, **size).state_dict(), folder / "weights.pth")
    config = ImageClassifier.Config(backbone=name, model_args=size, pretrained=str(folder / "weights.pth"))
    data = ImageFolderData(ImageFolderData.Config(root=folder, image_size=32, batch_size=4, num_workers=0))
    module = config.build(**data.module_arguments())
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", enable_checkpointing=False, max_steps=1, **quiet)
    trainer.fit(module, datamodule=data)
    normalize = data.train_dataset.transform.transforms[-2]
    assert (normalize.mean.tolist(), normalize.std.tolist()) == ([0.5] * 3, [0.5] * 3)
    assert data.preprocessing["crop_share"] == module.preprocessing["crop_share"] == 0.9


def test_fields_that_are_set_count(folder: Path) -> None:
    data, images = seen_by(Model(), folder, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert images.min() >= 0
    assert data.module_arguments()["crop_share"] == 1.0
