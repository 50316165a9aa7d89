import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import Dataset

from datamodules.base import DataModule


class Items(Dataset):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        return {"index": index}


class Data(DataModule):
    def setup(self, stage: str) -> None:
        self.train_dataset, self.val_dataset, self.test_dataset = Items(10), Items(5), Items(7)


class Seen(LightningModule):
    """Records the indices of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.train_seen: list[list[list[int]]] = []
        self.test_seen: list[int] = []

    def on_train_epoch_start(self) -> None:
        self.train_seen.append([])

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        self.train_seen[-1].append(batch["index"].tolist())
        return self.weight * 1

    def test_step(self, batch: dict, batch_idx: int) -> None:
        self.test_seen += batch["index"].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**arguments: object) -> Trainer:
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    return Trainer(accelerator="cpu", **quiet, **arguments)


def test_lightning_reads_an_order_per_epoch_and_tests_in_order() -> None:
    module, data = Seen(), Data(Data.Config(batch_size=4, drop_last=False, num_workers=1))
    with_data = trainer(max_epochs=3)
    with_data.fit(module, datamodule=data)
    with_data.test(module, datamodule=data, verbose=False)
    epochs = [[index for batch in epoch for index in batch] for epoch in module.train_seen]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert module.test_seen == list(range(7))


def test_overfitting_reads_the_same_batches() -> None:
    module = Seen()
    trainer(max_epochs=3, overfit_batches=2).fit(module, datamodule=Data(Data.Config(batch_size=4)))
    assert module.train_seen == [[[0, 1, 2, 3], [4, 5, 6, 7]]] * 3


def test_missing_dataset_is_named() -> None:
    with pytest.raises(ValueError, match=r"Data has no train_dataset: call setup\(\) first"):
        Data(Data.Config()).train_dataloader()
    with pytest.raises(ValueError, match="Data has no test_dataset"):
        Data(Data.Config()).test_dataloader()
    assert Data(Data.Config()).val_dataloader() == []


def test_config_builds_the_datamodule() -> None:
    data = Data.Config(batch_size=3).build()
    assert isinstance(data, Data)
    assert data.module_arguments() == {}


def test_starting_an_evaluation_loader_draws_no_random_number() -> None:
    data = Data(Data.Config())
    data.setup("test")
    before = torch.get_rng_state()
    list(data.test_dataloader())
    assert torch.equal(before, torch.get_rng_state())
