"""A module and data of the user's own: every command works with what there is, or says what is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from pydantic import Field, ValidationError
from torch.utils.data import DataLoader
from toys import ToyData, ToyModule, Widen

from callbacks import EarlyStopping, RecipeCallback, WeightAverage
from pangu_modules import Config, Configurable, Recipe, Stage
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import RUN_DIR_VARIABLE


class Net(Configurable, LightningModule):
    class Config(Config):
        width: int = Field(3, description="Hidden width.")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        hidden = torch.nn.Linear(4, config.width)  # type: ignore[attr-defined]
        self.net = torch.nn.Sequential(hidden, torch.nn.Dropout(0.1), torch.nn.Linear(config.width, 1))  # type: ignore[attr-defined]

    def training_step(self, batch: Any, index: int) -> Any:
        loss = self.net(batch).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self.net(batch).square().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Full(Net):
    """The same with what Lightning and the engine can use."""

    monitor = ("val_loss", "min")

    def test_step(self, batch: Any, index: int) -> None:
        self.log("test_loss", self.net(batch).square().mean())

    def forward(self, batch: Any) -> Any:
        return self.net(batch)


class Saves(Net):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.save_hyperparameters()  # the configuration as an object, which checkpoints could hold as code alone
        self.save_hyperparameters({"path": Path("x")})


class Asks(RecipeCallback):
    """A callback that adds an objective, as ours do."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.objectives["more"] = None


class Data(Configurable, LightningDataModule):
    class Config(Config):
        """Nothing to choose."""

    def __init__(self, config: Config) -> None:
        super().__init__()

    def train_dataloader(self) -> Any:
        return DataLoader(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), batch_size=8)

    val_dataloader = predict_dataloader = test_dataloader = train_dataloader


TRAINER = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False}


def recipe(kind: type = Net, **parts: Any) -> Recipe:
    return Recipe(**{"module": kind.Config(), "data": Data.Config(), "trainer": TRAINER, **parts})  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RUN_DIR_VARIABLE, "")
    monkeypatch.delenv(RUN_DIR_VARIABLE)
    monkeypatch.setattr(sys, "argv", ["own.py"])


def run(recipe: Recipe, *words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    main(recipe, list(words))


def refused(recipe: Recipe, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(recipe, words)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert printed[-1].startswith("See: ")
    return printed[-2]


def test_a_bare_module_trains_resumes_and_is_evaluated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = recipe(callbacks={"ema": WeightAverage.Config(decay=0.9)})
    with pytest.warns(UserWarning, match="Net has no class attribute `monitor`"):
        run(own, "fit", "--module.width", "5", monkeypatch=monkeypatch)
    folder = Path("runs/own/version_0")
    assert json.loads((folder / "result.json").read_text())["parameters"] == 4 * 5 + 5 + 5 + 1
    assert not (folder / "checkpoints/best.ckpt").exists()
    run(own, "validate", monkeypatch=monkeypatch)  # of width 5, as the checkpoint says
    assert "val_loss" in capsys.readouterr().out
    words = ["--ckpt_path", "last", "--trainer.max_epochs", "3"]
    run(own, "fit", *words, monkeypatch=monkeypatch)
    assert json.loads((folder / "result.json").read_text())["epochs"] == 3


def test_what_a_module_brings_is_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    own = recipe(Full, callbacks={"stop": EarlyStopping.Config()})
    run(own, "fit", monkeypatch=monkeypatch)
    folder = Path("runs/own/version_0")
    assert (folder / "checkpoints/best.ckpt").is_file()
    assert set(json.loads((folder / "result.json").read_text())["metrics"]) == {"test_loss"}
    run(own, "predict", monkeypatch=monkeypatch)
    assert sum(len(batch) for batch in torch.load(folder / "predictions.pt", weights_only=True)) == 16
    run(own, "plan", "--json", monkeypatch=monkeypatch)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["parameters"] == 4 * 3 + 3 + 3 + 1
    assert figures["missing"] == [
        "no operations: Full has no example_batch(...) and compute_outputs(...), as pangu_modules.PanguModule"
    ]


def test_what_is_missing_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(recipe(callbacks={"widen": Widen.Config()}), ["fit"], capsys)
    assert message.startswith("error: callbacks.widen: Net.Config has no 'structure': derive Net from pangu_modules.P")
    message = refused(recipe(callbacks={"asks": Asks.Config()}), ["fit"], capsys)
    assert message == (
        "error: callbacks.asks: Net has no 'objectives': derive it from pangu_modules.PanguModule, which has"
    )
    message = refused(recipe(Saves), ["fit"], capsys)
    assert "Saves.save_hyperparameters() keeps 'path', a PosixPath" in message
    run(recipe(Full), "fit", monkeypatch=monkeypatch)
    assert "Full offers: none" in refused(recipe(Full), ["export"], capsys)
    assert "Net has no predict_step(batch, batch_idx) and no forward(batch)" in refused(recipe(), ["predict"], capsys)
    staged = Recipe(
        stages={
            name: Stage(module=Net.Config(), data=Data.Config(), trainer=TRAINER, start_from=start)
            for name, start in (("a", None), ("b", "a"))
        }
    )
    assert "start_from: Net starts from no checkpoint" in refused(staged, ["fit"], capsys)


def test_objects_in_place_of_configurations_are_refused_with_what_to_write() -> None:
    with pytest.raises(ValidationError, match=r"give ToyModule\.Config\(\.\.\.\)"):
        Recipe(module=ToyModule(ToyModule.Config()), data=ToyData.Config())
    with pytest.raises(ValidationError, match=r"give ToyData\.Config\(\.\.\.\)"):
        Recipe(module=ToyModule.Config(), data=ToyData)

    class Alone(Config):
        """Nested in nothing."""

    with pytest.raises(ValidationError, match=r"Alone builds nothing: nest it as `Config`"):
        Recipe(module=Alone(), data=ToyData.Config())


def test_a_metric_that_nothing_logs_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    from lightning.pytorch.callbacks import EarlyStopping as Plain

    wrong = type("Wrong", (Full,), {"monitor": ("val/loss", "min"), "__module__": __name__})
    message = refused(recipe(wrong), ["fit"], capsys)
    assert "could not find the monitored key in the returned metrics: ['train_loss'" in message
    message = refused(recipe(callbacks={"stop": Plain("val/loss")}), ["fit"], capsys)
    assert "Early stopping conditioned on metric `val/loss` which is not available" in message
