"""What a resume takes over, what can be changed, what is refused, and which run is gone on with."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from kills import assert_same, left_by
from toy_runs import CONSTANT as RECIPE
from toy_runs import FIRST, refusal

from pangu_modules import Recipe, Stage
from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.engine import trainer as engine_trainer
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import versions
from pangu_modules.training.callback import RecipeCallback


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["toy.py"])


def learning_rates(folder: Path = FIRST) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["lr-AdamW/pg1"]) for row in csv.DictReader(file) if row["lr-AdamW/pg1"]]


def test_a_new_learning_rate_is_used_and_written() -> None:
    main(RECIPE, ["fit"])
    words = ["--trainer.max_epochs", "3", "--module.optimizer.lr", "1e-6", "--module.optimizer.weight_decay", "0.3"]
    main(RECIPE, ["fit", "--ckpt_path", "last", *words])
    assert learning_rates() == [5e-4] * 16 + [1e-6] * 8
    written = yaml.safe_load((FIRST / "config.yaml").read_text())["module"]["optimizer"]
    assert (written["lr"], written["weight_decay"]) == (1e-6, 0.3)
    stored = torch.load(FIRST / "checkpoints/last.ckpt", weights_only=True)
    groups = stored["optimizer_states"][0]["param_groups"]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-6, 0.3), (1e-6, 0.0)]
    assert stored["hyper_parameters"]["config"]["optimizer"]["lr"] == 1e-6
    assert "1.0e-06" in (FIRST / "report.md").read_text()


def test_a_schedule_goes_on_from_its_step_with_the_new_peak() -> None:
    cosine = RECIPE.derive(module={"optimizer": {"schedule": "cosine"}}, trainer={"max_epochs": 4})
    main(cosine, ["fit"])
    whole = learning_rates()
    main(cosine, ["fit", "--trainer.max_epochs", "2"])
    again = versions("toy")[-1]
    words = ["--trainer.max_epochs", "4", "--module.optimizer.lr", "1e-3"]
    main(cosine, ["fit", "--ckpt_path", "last", *words])
    assert learning_rates(again)[16:] == pytest.approx([2 * lr for lr in whole[16:]])


def test_what_was_asked_for_then_need_not_be_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    main(RECIPE, ["fit", "--module.optimizer.lr", "1e-3", "--module.dropout", "0.4"])
    main(RECIPE, ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"])
    assert learning_rates() == [1e-3] * 24
    written = yaml.safe_load((FIRST / "config.yaml").read_text())["module"]
    assert (written["optimizer"]["lr"], written["dropout"]) == (1e-3, 0.4)
    assert "dropout 0.4 (recipe: 0.1)" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fit", "test", "export"])
def test_what_cannot_change_is_named(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(RECIPE, ["fit"])
    before = (FIRST / "config.yaml").read_bytes()
    message = refusal([command, "--ckpt_path", "last", "--module.dropout", "0.5"], capsys)
    assert message.startswith("error: --module.dropout 0.5 (trained with 0.1): a checkpoint keeps")
    assert "change only optimizer" in message
    Path("other.yaml").write_text("module: {dropout: 0.2}")
    assert "--module.dropout 0.2" in refusal([command, "--config", "other.yaml"], capsys) if command != "fit" else True
    assert (FIRST / "config.yaml").read_bytes() == before


def test_a_refused_resume_leaves_the_run_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    main(RECIPE, ["fit"])
    before = {path: path.read_bytes() for path in FIRST.rglob("*") if path.is_file()}
    refusal(["fit", "--ckpt_path", "last", "--callbacks.widen.width", "16", "--trainer.strategy", "no"], capsys)
    refusal(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "-1"], capsys)
    assert {path: path.read_bytes() for path in FIRST.rglob("*") if path.is_file()} == before


def test_a_dry_run_is_never_taken_up(capsys: pytest.CaptureFixture[str]) -> None:
    main(RECIPE, ["fit"])
    main(RECIPE, ["fit", "--trainer.fast_dev_run", "true"])
    assert [path.name for path in versions("toy")] == ["version_0"]
    assert Path("runs/toy/dry_run_0/report.html").is_file()
    main(RECIPE, ["fit", "--ckpt_path", "last", "--trainer.fast_dev_run", "true"])
    assert Path("runs/toy/dry_run_1").is_dir()
    main(RECIPE, ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"])
    assert json.loads((FIRST / "result.json").read_text())["epochs"] == 3


def test_a_dry_run_of_a_later_stage_leaves_the_run_alone() -> None:
    stage = {name: getattr(RECIPE.stages[""], name) for name in ("module", "data", "callbacks", "trainer")}
    staged = Recipe(stages={"first": Stage(**stage), "second": Stage(**stage, start_from="first")})
    main(staged, ["fit"])
    before = (FIRST / "second/result.json").read_bytes()
    main(staged, ["fit", "--stage", "second", "--second.trainer.fast_dev_run", "true"])
    assert (FIRST / "second/result.json").read_bytes() == before
    assert Path("runs/toy/dry_run_0/second/result.json").is_file()


def test_max_time_ends_a_run_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    main(RECIPE, ["fit", "--trainer.max_time", "00:00:00:00", "--trainer.max_epochs", "30"])
    assert "trainer.max_time=00:00:00:00 has ended training at step" in capsys.readouterr().err
    assert json.loads((FIRST / "result.json").read_text())["epochs"] <= 1
    assert "trainer.max_time: " in refusal(["fit", "--trainer.max_time", "tomorrow"], capsys)


class Signal(RecipeCallback):
    """Sends SIGTERM, or asks training to stop, at a moment of the class."""

    class Config(BaseConfig):
        pass

    at: ClassVar[tuple[str, int]] = ("", 0)

    def send(self, hook: str, trainer: Any) -> None:
        wanted, left = Signal.at
        if hook == wanted:
            Signal.at = (wanted, left - 1)
            if left == 1 and hook == "stop":
                trainer.should_stop = True
            elif left == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.send("step", trainer)
        self.send("stop", trainer)

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.send("validation", trainer)

    def on_test_batch_start(self, trainer: Any, *_: Any) -> None:
        self.send("test", trainer)


SIGNALLED = RECIPE.derive(callbacks={"signal": Signal.Config()}, trainer={"max_epochs": 3}, module={"dropout": 0.3})


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(engine_trainer, "SAVE_EVERY", 3)
    folder = tmp_path / "whole"
    folder.mkdir()
    monkeypatch.chdir(folder)
    main(SIGNALLED, ["fit"])
    left = left_by(FIRST)
    monkeypatch.chdir(tmp_path)
    return left


# The data have two batches of validation and of test: the last one's SIGTERM is what Lightning does not act on.
@pytest.mark.parametrize(
    "at", [("step", 5), ("step", 8), ("validation", 1), ("validation", 2), ("validation", 3), ("test", 1), ("test", 2)]
)
def test_sigterm_stops_everywhere_and_costs_nothing(
    at: tuple[str, int], whole: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Signal.at = at
    with pytest.raises(SystemExit) as stopped:
        main(SIGNALLED, ["fit"])
    assert stopped.value.code == 130
    assert "to go on: python toy.py fit --ckpt_path last" in capsys.readouterr().err
    has_last = (FIRST / "checkpoints/last.ckpt").is_file()
    main(SIGNALLED, ["fit", *(["--ckpt_path", "last"] if has_last else [])])
    assert_same(left_by(versions("toy")[-1]), whole)


def test_what_stops_inside_an_epoch_goes_on_there(whole: dict[str, Any]) -> None:
    Signal.at = ("stop", 12)
    main(SIGNALLED, ["fit"])
    assert json.loads((FIRST / "result.json").read_text())["epochs"] == 2
    assert torch.load(FIRST / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 12
    main(SIGNALLED, ["fit", "--ckpt_path", "last"])
    left = left_by(FIRST)
    assert_same({name: left[name] for name in ("last", "result")}, {name: whole[name] for name in ("last", "result")})
