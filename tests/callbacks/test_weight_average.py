import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from pydantic import ValidationError
from torch import nn
from torch.utils.data import DataLoader

from callbacks.weight_average import WeightAverage


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 1)
        self.register_buffer("index", torch.arange(5000))
        self.register_buffer("steps", torch.zeros(()))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.steps += 1
        return self.net(batch).square().mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.validated = [parameter.detach().clone() for parameter in self.net.parameters()]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Record(Callback):
    """The weights after every optimizer step."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        self.weights.append(pl_module.net.weight.detach().clone())


def train(*callbacks: Callback, steps: int = 12, **arguments: object) -> Module:
    torch.manual_seed(0)
    module = Module()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{"enable_checkpointing": False, **arguments},
    )
    batches, validation = torch.randn(steps, 4, 3), torch.randn(1, 4, 3)
    trainer.fit(module, DataLoader(batches, batch_size=None), DataLoader(validation, batch_size=None))
    return module


def average(**fields: object) -> WeightAverage:
    return WeightAverage(WeightAverage.Config(**fields), name="ema")


@pytest.mark.parametrize(("start", "every"), [(0, 1), (0, 3), (5, 1), (5, 2), (100, 1)])
def test_average_equals_the_loop(start: int, every: int) -> None:
    record = Record()
    module = train(record, average(decay=0.8, update_starting_at_step=start, update_every_n_steps=every))
    expected = record.weights[0].double()
    for step, weight in enumerate(record.weights):
        if step <= start:
            expected = weight.double()
        elif (step - start) % every == 0:
            expected = 0.8 * expected + 0.2 * weight.double()
    # float32 against float64: 6e-8 measured on weights of 0.5
    torch.testing.assert_close(module.net.weight.double(), expected, rtol=0, atol=3e-7)
    assert torch.equal(module.validated[0], module.net.weight)


def test_integer_buffers_are_copied_and_others_averaged() -> None:
    module = train(average(decay=0.9))
    assert torch.equal(module.index, torch.arange(5000))
    assert 1 < module.steps < 12


def test_checkpoint_holds_both_weights(tmp_path) -> None:
    record = Record()
    module = train(
        record,
        average(decay=0.8),
        ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True),
        enable_checkpointing=True,
    )
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(checkpoint["state_dict"]["net.weight"], module.net.weight)
    assert torch.equal(checkpoint["current_model_state"]["net.weight"], record.weights[-1])
    assert "ema" in checkpoint["callbacks"]


def test_checkpoint_of_weights_only_warns(tmp_path) -> None:
    record = Record()
    best = ModelCheckpoint(tmp_path, "best", save_weights_only=True, save_on_train_epoch_end=True)
    with pytest.warns(UserWarning, match="'ema': a ModelCheckpoint with save_weights_only=True"):
        train(record, average(decay=0.8), best, enable_checkpointing=True)
    stored = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(stored["net.weight"], record.weights[-1])  # what the warning says


class Grow(Callback):
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.net = nn.Sequential(nn.Linear(3, 3), pl_module.net)


def test_structure_changed_after_the_copy_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'ema': the model's structure changed .* after those that change"):
        train(average(), Grow())


def test_structure_changed_before_the_copy_is_averaged() -> None:
    assert len(list(train(Grow(), average()).net.parameters())) == 4


def test_two_averages_are_refused() -> None:
    with pytest.raises(ValueError, match="can average its weights once"):
        train(average(), WeightAverage(WeightAverage.Config(decay=0.9), name="slow"))


def test_sharded_weights_are_refused() -> None:
    trainer = Trainer(accelerator="cpu", strategy=ModelParallelStrategy(), devices=1, logger=False)
    with pytest.raises(ValueError, match="sharded by ModelParallelStrategy"):
        average().setup(trainer, Module(), "fit")


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1])
def test_decay_is_a_share(decay: float) -> None:
    with pytest.raises(ValidationError, match="decay"):
        WeightAverage.Config(decay=decay)


def test_config_builds_the_callback() -> None:
    callback = WeightAverage.Config(decay=0.9).build(name="mine")
    assert isinstance(callback, WeightAverage)
    assert callback.state_key == "mine"
