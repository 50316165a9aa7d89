"""Errors before the first batch end with code 2 and name the part; later ones keep their traceback."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from toys import ToyData, ToyModule, Widen

from datamodules import ImageFolderData, TextData
from pangu_modules import ImageClassifier, Recipe
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import RUN_DIR_VARIABLE

TRAINER = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}


class Missing(ToyData):
    """Data whose file is not there, found out as late as the hook says."""

    class Config(ToyData.Config):
        hook: Literal["prepare_data", "setup", "train_batch", "none"] = "none"

    config: Config

    def prepare_data(self) -> None:
        self._fail_in("prepare_data")

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._fail_in("setup")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self._fail_in("train_batch")
        return batch

    def _fail_in(self, hook: str) -> None:
        if self.config.hook == hook:
            raise FileNotFoundError("source='gone.txt': nothing there; name another one")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "argv", ["toy.py"])


def toy(hook: str = "none") -> Recipe:
    return Recipe(
        module=ToyModule.Config(),
        data=Missing.Config(hook=hook),
        callbacks={"widen": Widen.Config()},
        trainer=TRAINER,
    )


def failure(recipe: Recipe, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(recipe, words)
    assert stopped.value.code == 2
    first, second = capsys.readouterr().err.strip().splitlines()
    assert second == f"See: python toy.py {words[0]} --help"
    return first


@pytest.mark.parametrize("hook", ["prepare_data", "setup"])
def test_missing_data_are_named_by_every_command(
    hook: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "error: data: source='gone.txt': nothing there; name another one"
    assert failure(toy(hook), ["fit"], capsys) == message
    assert not Path("runs/toy/version_0").exists()  # nothing is left of a run that never began
    main(toy(), ["fit"])
    for command in ("validate", "test", "predict"):
        assert failure(toy(hook), [command], capsys) == message
    assert failure(toy(hook), ["fit", "--ckpt_path", "last"], capsys) == message
    assert Path("runs/toy/version_0/checkpoints/last.ckpt").is_file()  # that run did begin


def test_a_file_that_fit_has_not_written_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}}, "other.ckpt")
    for command in ("fit", "test", "export"):
        message = failure(toy(), [command, "--ckpt_path", "other.ckpt"], capsys)
        assert (
            message == "error: --ckpt_path: other.ckpt holds no configuration: give a .ckpt file that fit has written"
        )


def test_a_callback_and_the_optimizer_are_named_too(capsys: pytest.CaptureFixture[str]) -> None:
    message = failure(toy(), ["fit", "--callbacks.widen.width", "3"], capsys)
    assert message == "error: callbacks.widen: width: 3 is less than the layer's 8"
    message = failure(toy(), ["fit", "--trainer.max_epochs", "-1"], capsys)
    assert message.startswith("error: module: the number of training steps is unknown: set trainer.max_steps")


def test_an_error_of_a_batch_keeps_its_traceback() -> None:
    with pytest.raises(FileNotFoundError, match=r"gone.txt"):
        main(toy("train_batch"), ["fit"])
    with pytest.raises(FileNotFoundError, match=r"gone.txt"):
        main(toy("train_batch"), ["fit", "--trainer.limit_val_batches", "0"])  # without a sanity check


def test_missing_text_and_images(capsys: pytest.CaptureFixture[str]) -> None:
    text = Recipe(module=ToyModule.Config(), data=TextData.Config(), trainer=TRAINER)
    message = failure(text, ["fit", "--data.source", "nowhere.txt"], capsys)
    assert message.startswith("error: data: source='nowhere.txt': nothing there; searched")
    backbone = ImageClassifier.Config(backbone="vit_tiny_patch16_224")
    images = Recipe(module=backbone, data=ImageFolderData.Config(root="nowhere"), trainer=TRAINER)
    message = failure(images, ["fit"], capsys)
    assert message.startswith("error: data: no class folders in")
    assert "put images into" in message
    assert not list(Path("runs").glob("*/*"))
