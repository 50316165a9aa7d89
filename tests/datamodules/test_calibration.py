import random

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler, TensorDataset
from toys import ToyData

from datamodules import TextData
from datamodules.calibration import calibration_batches, calibration_sequences
from datamodules.images.digits import DigitsData


class Foreign(LightningDataModule):
    """A datamodule that knows nothing of ours and draws global random numbers in its samples."""

    def __init__(self, **loader_arguments: object) -> None:
        super().__init__()
        self.loader_arguments = {"batch_size": 4, "shuffle": True, **loader_arguments}

    def train_dataloader(self) -> DataLoader:
        torch.rand(3)
        return DataLoader(Drawing(20), **self.loader_arguments)


class Drawing(Dataset):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        return {"index": index, "noise": random.random() + np.random.rand() + torch.rand(()).item()}


def states() -> tuple:
    return (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        np.random.get_state()[2],
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("data", [Foreign(), DigitsData(DigitsData.Config(batch_size=16, max_shift=2))])
def test_random_states_are_left_alone(data: LightningDataModule) -> None:
    data.setup("fit")
    expected = states()
    for _ in calibration_batches(data, 3, seed=1):
        assert states() == expected  # also while the caller works between two batches
    assert states() == expected


def test_training_order_is_left_alone() -> None:
    first, second = (DigitsData(DigitsData.Config(batch_size=16, train_size=64)) for _ in range(2))
    for data in (first, second):
        data.setup("fit")
    expected = [batch["image"] for batch in first.train_dataloader()]
    loader = second.train_dataloader()
    got = []
    for batch in loader:
        got.append(batch["image"])
        list(calibration_batches(second, 2, seed=0))
    assert torch.equal(torch.stack(got), torch.stack(expected))


def test_batches_are_drawn_without_replacement_per_seed() -> None:
    def read(seed: int) -> list[int]:
        return [index for batch in calibration_batches(Foreign(), 5, seed=seed) for index in batch["index"].tolist()]

    assert sorted(read(0)) == list(range(20))
    assert read(0) == read(0)
    assert read(0) != read(1)


def test_batches_look_like_training_batches() -> None:
    data = DigitsData(DigitsData.Config(batch_size=16))
    data.setup("fit")
    (batch,) = calibration_batches(data, 1, seed=0)
    assert batch["image"].shape == (16, 1, 28, 28)
    assert batch["label"].shape == (16,)


def test_batch_size_of_a_batch_sampler_counts() -> None:
    sampler = BatchSampler(SequentialSampler(range(20)), 5, drop_last=False)
    data = Foreign(batch_sampler=sampler, batch_size=1, shuffle=None)
    assert [len(batch["index"]) for batch in calibration_batches(data, 2, seed=0)] == [5, 5]


def test_too_few_samples_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="wants 6 batches of 4 = 24 samples, the training data has 20"):
        calibration_batches(Foreign(), 6, seed=0)


class Endless(IterableDataset):
    def __iter__(self):
        yield from iter(int, 1)

    def __len__(self) -> int:
        return 100


@pytest.mark.parametrize("loader", [DataLoader(Endless()), [DataLoader(TensorDataset(torch.ones(3)))]])
def test_other_loaders_are_refused(loader: object) -> None:
    class Other(LightningDataModule):
        def train_dataloader(self) -> object:
            return loader

    with pytest.raises(TypeError, match="Other cannot be calibrated on"):
        calibration_batches(Other(), 1, seed=0)


def test_a_reserved_calibration_set_is_preferred() -> None:
    data = ToyData(ToyData.Config(batch_size=4))
    data.setup("fit")
    data.calibration_dataset = [{"input": torch.tensor(-1.0 - index)} for index in range(8)]
    values = torch.cat([batch["input"] for batch in data.calibration_batches(2, seed=0)])
    assert sorted(values.tolist()) == [-8.0 + index for index in range(8)]
    with pytest.raises(ValueError, match="the calibration data has 8"):
        data.calibration_batches(3, seed=0)


def test_a_stream_holds_every_sample_once_and_begins_as_batches_do():
    data = Foreign()
    size = len(data.train_dataloader().dataset)
    for expected in (1, 3, size):
        stream = [int(sample["index"]) for sample in calibration_sequences(data, 4, expected=expected)]
        assert sorted(stream) == list(range(size))
        batches = -(-expected // data.train_dataloader().batch_size)
        drawn = [index for batch in calibration_batches(data, batches, 4) for index in batch["index"].tolist()]
        assert stream[: len(drawn)] == drawn


def test_a_stream_leaves_randomness_alone_between_its_samples():
    state = torch.get_rng_state()
    for _ in calibration_sequences(Foreign(), 0):
        assert torch.equal(torch.get_rng_state(), state)


def test_another_source_is_read_by_text_data_alone(tmp_path):
    (tmp_path / "other.txt").write_text("the other text " * 400)
    data = TextData.Config(sequence_length=16, batch_size=4).build()
    data.setup()
    stream = list(data.calibration_sequences(0, source=str(tmp_path / "other.txt")))
    assert {len(sample["input_ids"]) for sample in stream} == {16}
    text = data.tokenizer.decode(stream[0]["input_ids"])
    assert "other text" in text
    with pytest.raises(ValueError, match=r"calibration\.source='x': DigitsData reads no other text"):
        DigitsData.Config().build().calibration_sequences(0, source="x")
