import numpy as np
import pytest
import torch
from pydantic import ValidationError

from datamodules.images.digits import DigitsData, GreyImages
from datamodules.samples.embedded import LabelledImages


def prepared(**fields: object) -> DigitsData:
    data = DigitsData(DigitsData.Config(**fields))
    data.setup("fit")
    return data


def pixels(dataset: GreyImages) -> set[bytes]:
    return {image.numpy().tobytes() for image in dataset.__getitems__(list(range(len(dataset))))["image"]}


def test_digits_splits_are_disjoint_and_the_test_images_fixed() -> None:
    first, second = (prepared(seed=seed, max_shift=0) for seed in (0, 1))
    parts = [pixels(part) for part in (first.train_dataset, first.val_dataset, first.test_dataset)]
    assert [len(part) for part in parts] == [2000, 500, 1000]
    assert not parts[0] & parts[1]
    assert not parts[2] & (parts[0] | parts[1])
    assert pixels(second.test_dataset) == parts[2]
    assert pixels(second.train_dataset) != parts[0]
    assert not pixels(second.train_dataset) & parts[2]
    assert pixels(prepared(seed=0, max_shift=0).train_dataset) == parts[0]


def test_digits_batches() -> None:
    data = prepared(batch_size=64)
    loader = data.train_dataloader()
    batch = next(iter(loader))
    assert len(loader) == 2000 // 64
    assert batch["image"].shape == (64, 1, 28, 28)
    assert batch["image"].dtype == torch.float32
    assert batch["label"].shape == (64,)
    assert batch["label"].dtype == torch.int64
    images = torch.cat([batch["image"] for batch in data.test_dataloader()])
    assert images.shape == (1000, 1, 28, 28)
    assert images.mean() == pytest.approx(0, abs=0.05)
    assert images.std() == pytest.approx(1, abs=0.05)
    images = {"image_size": 28, "in_chans": 1, "mean": [0.1307], "std": [0.3081]}
    assert data.module_arguments() == {"num_classes": 10, "label_names": list("0123456789"), **images}


def test_digits_without_validation() -> None:
    assert prepared(train_size=4000, val_size=0).val_dataloader() == []


def test_small_digits() -> None:
    batch = next(iter(prepared(source="small_digits", train_size=900, val_size=100, test_size=300).train_dataloader()))
    assert batch["image"].shape == (64, 1, 8, 8)


def test_too_many_images_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"train_size=4000 and val_size=500 are 4500 images; .* 'mnist' has 4000"):
        prepared(train_size=4000)
    with pytest.raises(ValueError, match="test_size=1798, but source 'small_digits' has 1797"):
        prepared(source="small_digits", test_size=1798)
    with pytest.raises(ValidationError, match="max_shift"):
        DigitsData.Config(max_shift=-1)


def test_fashion_uses_its_own_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(split: str) -> LabelledImages:
        size = 60 if split == "train" else 20
        value = 1 if split == "train" else 2
        return LabelledImages(
            torch.full((size, 28, 28), value, dtype=torch.uint8), torch.zeros(size, dtype=torch.int64)
        )

    monkeypatch.setattr("datamodules.images.digits.fashion_mnist", fake)
    data = prepared(source="fashion", train_size=50, val_size=10, test_size=20, max_shift=0)
    means = [dataset.__getitems__([0])["image"].mean() for dataset in (data.train_dataset, data.test_dataset)]
    expected = [(value / 255 - 0.2860) / 0.3530 for value in (1, 2)]
    torch.testing.assert_close(torch.stack(means), torch.tensor(expected))


def shifted(image: np.ndarray, down: int, right: int, mirrored: bool) -> np.ndarray:
    """Move an image pixel by pixel, then mirror it."""
    height, width = image.shape
    result = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            source_row, source_column = row - down, column - right
            if 0 <= source_row < height and 0 <= source_column < width:
                result[row, column] = image[source_row, source_column]
    return result[:, ::-1] if mirrored else result


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("max_shift", [0, 1, 2])
def test_augmentation_equals_one_of_the_moved_images(max_shift: int, flip: bool) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, size=(40, 5, 6), dtype=np.uint8)
    data = LabelledImages(torch.from_numpy(images), torch.arange(40))
    dataset = GreyImages(data, (0.25, 0.5), seed=1, max_shift=max_shift, flip=flip)
    order = generator.permutation(40).tolist()
    moves = range(-max_shift, max_shift + 1)
    used = set()
    for epoch in range(3):
        dataset.set_epoch(epoch)
        batch = dataset.__getitems__(order)
        assert batch["label"].tolist() == order
        got = np.rint((batch["image"][:, 0].double().numpy() * 0.5 + 0.25) * 255).astype(np.uint8)
        for image, index in zip(got, order, strict=True):
            variants = {
                (down, right, mirrored): shifted(images[index], down, right, mirrored)
                for down in moves
                for right in moves
                for mirrored in ([False, True] if flip else [False])
            }
            (variant,) = [key for key, value in variants.items() if np.array_equal(value, image)]
            used.add(variant)
    assert [set(values) for values in zip(*used, strict=True)] == [{*moves}, {*moves}, {False, flip}]


def test_augmentation_is_a_function_of_seed_epoch_and_index() -> None:
    data = LabelledImages(torch.randint(0, 256, (30, 6, 6), dtype=torch.uint8), torch.arange(30))

    def read(seed: int, epoch: int, indices: list[int]) -> torch.Tensor:
        dataset = GreyImages(data, (0.0, 1.0), seed=seed, max_shift=2)
        dataset.set_epoch(epoch)
        return dataset.__getitems__(indices)["image"]

    alone = torch.stack([read(1, 2, [index])[0] for index in range(30)])
    assert torch.equal(read(1, 2, list(range(30))), alone)
    assert not torch.equal(read(1, 3, list(range(30))), alone)
    assert not torch.equal(read(2, 2, list(range(30))), alone)


def test_sample_and_batch_agree() -> None:
    dataset = prepared().val_dataset
    sample = dataset[3]
    assert sample["image"].shape == (1, 28, 28)
    assert torch.equal(sample["image"], dataset.__getitems__([0, 3])["image"][1])
