"""Lightning callbacks in recipes: objects become data, the command line and YAML add them, wrong ones are refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, RichProgressBar, StochasticWeightAveraging
from pydantic import ValidationError
from toys import ToyData, ToyModule, Widen

from callbacks import GradientNorm, LightningCallback
from pangu_modules import Recipe, Stage
from pangu_modules.engine.cli import main, parse
from pangu_modules.engine.folder import RUN_DIR_VARIABLE
from pangu_modules.engine.lightning_callback import as_config, describe
from pangu_modules.engine.request import Program

PROGRAM = Program(name="toy", call="python toy.py", title="A toy.")
PARTS = {
    "module": ToyModule.Config(),
    "data": ToyData.Config(batch_size=8),
    "trainer": {"max_epochs": 30, "accelerator": "cpu", "enable_progress_bar": False},
}
PLAIN = Recipe(**PARTS)
PATH = "lightning.pytorch.callbacks.EarlyStopping"


class Remembers(Callback):
    """A user's own: one argument under its name, one under a private name."""

    def __init__(self, at: int, word: str = "x") -> None:
        self.at, self._word = at, word


class Forgets(Callback):
    def __init__(self, at: int) -> None:
        self.twice = 2 * at


def parsed(recipe: Recipe, *words: str) -> Any:
    request = parse(recipe, ["fit", *words], PROGRAM)
    assert request is not None
    return request.recipe.stages


@pytest.mark.parametrize(
    ("callback", "arguments"),
    [
        (EarlyStopping("val/loss", patience=1, mode="max"), {"monitor": "val/loss", "patience": 1, "mode": "max"}),
        (EarlyStopping("val/loss", min_delta=0.5), {"monitor": "val/loss", "min_delta": 0.5}),
        (LearningRateMonitor("epoch"), {"logging_interval": "epoch"}),
        (RichProgressBar(), {}),
        (StochasticWeightAveraging(1e-2), {"swa_lrs": 0.01}),
        (Remembers(3, "y"), {"at": 3, "word": "y"}),
    ],
)
def test_an_object_becomes_class_and_arguments(callback: Callback, arguments: dict[str, Any]) -> None:
    config = describe(callback)
    assert config.init_args == arguments
    again = LightningCallback.model_validate(yaml.safe_load(yaml.safe_dump(config.plain()))).build(name="again")
    assert type(again) is type(callback)
    assert again is not callback


def test_what_cannot_be_read_back_is_refused_with_what_to_write() -> None:
    class Inside(Callback):
        pass

    with pytest.raises(ValueError, match=r"its arguments \(at\) cannot be read back.*init_args=\{\.\.\.\}"):
        as_config(Forgets(3))
    with pytest.raises(ValueError, match="defined inside a function or class"):
        as_config(Inside())
    with pytest.raises(ValueError, match=r"EarlyStopping is a class: give an object"):
        as_config(EarlyStopping)
    with pytest.raises(ValidationError, match=r"give callbacks by name"):
        Stage(**{**PARTS, "callbacks": [EarlyStopping("val/loss")]})
    ours = GradientNorm.Config(kind="max")
    assert as_config(ours.build(name="norm")) is ours


def test_a_recipe_takes_the_object_and_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = PLAIN.derive(callbacks={"stop": EarlyStopping("val/loss", patience=1, stopping_threshold=100.0)})
    assert recipe.plain()["callbacks"]["stop"]["class_path"].endswith("EarlyStopping")
    first = recipe.fit(tmp_path / "first", quiet=True)
    assert first.epochs == 1
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RUN_DIR_VARIABLE, "")  # so that what the run sets does not stay
    monkeypatch.delenv(RUN_DIR_VARIABLE)
    monkeypatch.setattr(sys, "argv", ["toy.py"])
    # The run's configuration adds the callback to a recipe that does not have it.
    main(PLAIN, ["fit", "--config", "first/config.yaml"])
    result = json.loads(Path("runs/toy/version_0/result.json").read_text())
    assert (result["epochs"], result["metrics"]) == (1, first.metrics)


INLINE = json.dumps({"class_path": PATH, "init_args": {"monitor": "val/loss", "patience": 2}})
OTHER = json.dumps({"class_path": "callbacks.GradientNorm", "init_args": {"kind": "max"}})


def test_the_command_line_adds_changes_and_removes(tmp_path: Path) -> None:
    added = parsed(PLAIN, "--callbacks.stop", INLINE)[""].callbacks["stop"]
    assert added == LightningCallback(class_path=PATH, init_args={"monitor": "val/loss", "patience": 2})
    words = [f"--callbacks.stop.class_path={PATH}", "--callbacks.stop.init_args.monitor", "a", "--callbacks.n=" + OTHER]
    stage = parsed(PLAIN, *words)[""]
    assert stage.callbacks["stop"].init_args == {"monitor": "a"}
    assert stage.callbacks["n"].build(name="n").config == GradientNorm.Config(kind="max")
    held = PLAIN.derive(callbacks={"stop": EarlyStopping("val/loss"), "widen": Widen.Config()})
    changed = parsed(held, "--callbacks.stop.init_args.patience", "7")[""].callbacks["stop"]
    assert changed.init_args == {"monitor": "val/loss", "patience": 7}
    assert parsed(held, "--callbacks.stop", "null")[""].callbacks["stop"] is None
    replaced = parsed(held, "--callbacks.widen", OTHER)[""].callbacks["widen"]
    assert replaced.class_path == "callbacks.GradientNorm"
    (tmp_path / "more.yaml").write_text(f"second: {{callbacks: {{stop: {INLINE}}}}}")
    staged = Recipe(stages={"first": Stage(**PARTS), "second": Stage(**PARTS)})
    stages = parsed(staged, "--config", str(tmp_path / "more.yaml"))
    assert (stages["first"].callbacks, stages["second"].callbacks) == ({}, {"stop": added})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{"class_path": "lightning.pytorch.callbacks.EarlyStoping"}', "no such class. Did you mean 'EarlyStopping'?"),
        ('{"class_path": "EarlyStopping"}', "no such class. give module and class"),
        ('{"class_path": "nowhere.Stop"}', "callbacks.stop: class_path='nowhere.Stop': No module named 'nowhere'"),
        (
            '{"class_path": "os.system", "init_args": {"command": "true"}}',
            "is no subclass of lightning.pytorch.Callback",
        ),
        ('{"class_path": "pytorch_lightning.Trainer"}', "import it from lightning.pytorch in place of"),
        (
            f'{{"class_path": "{PATH}", "init_args": {{"monitr": "a"}}}}',
            "no argument 'monitr'. Did you mean 'monitor'?",
        ),
        (f'{{"class_path": "{PATH}"}}', "missing 1 required positional argument: 'monitor'"),
        (f'{{"class_path": "{PATH}", "init_args": {{"monitor": "a", "mode": "less"}}}}', "does not take"),
        (
            '{"class_path": "callbacks.GradientNorm", "init_args": {"kind": "l1"}}',
            "kind: Input should be 'l2' or 'max'",
        ),
        ('{"class_path": 3}', "callbacks.stop"),
    ],
)
def test_wrong_classes_and_arguments_end_with_code_2(
    value: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["toy.py"])
    with pytest.raises(SystemExit) as stopped:
        main(PLAIN, ["fit", "--callbacks.stop", value])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 2


def test_two_states_under_one_key_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    twice = PLAIN.derive(callbacks={"a": EarlyStopping("val/loss"), "b": EarlyStopping("val/loss", patience=9)})
    with pytest.raises(SystemExit):
        main(twice, ["fit"])
    assert "callbacks.b: Lightning keeps its state under" in capsys.readouterr().err
