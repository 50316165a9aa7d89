"""Every tiny setting, killed at every named moment and started again: what it leaves equals the uninterrupted run's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kills import MOMENTS, KillSwitch, assert_same, killed, left_by
from old_checkpoints import OPTIMIZER, TinyData
from settings import SETTINGS

import callbacks as all_callbacks
import pangu_modules
from pangu_modules import Recipe
from pangu_modules.engine import trainer as engine_trainer
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import versions

CALIBRATED = ("slimllm", "drop", "light", "absorb")
QUICK = {
    ("slimllm", "calibration"),
    ("dwm", "later step"),
    ("binarize", "between best and last"),
    ("image", "later validation"),
    ("balance", "before last is renamed"),
}


class KilledData(TinyData):
    """Tiny data that can be killed when calibration begins."""

    class Config(TinyData.Config):
        pass

    def module_arguments(self) -> dict[str, Any]:
        return {"num_classes": 3} if self.config.images else {}

    def calibration_sequences(self, seed: int, **named: Any) -> Iterator[Any]:
        KillSwitch.pull("calibration")
        return super().calibration_sequences(seed, **named)


def recipe_of(name: str) -> Recipe:
    setting = SETTINGS[name]
    module, config = setting.module
    callbacks: dict[str, Any] = {"kill": KillSwitch.Config()}
    if setting.callback:
        callbacks[name] = getattr(all_callbacks, setting.callback).Config.model_validate(setting.config)
    trainer = {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 2}
    return Recipe(
        module=getattr(pangu_modules, module).Config.model_validate({**config, "optimizer": OPTIMIZER}),
        data=KilledData.Config(images=setting.images),
        callbacks=callbacks,
        trainer=trainer,
    )


CASES = [(name, moment) for name in SETTINGS for moment in MOMENTS] + [(name, "calibration") for name in CALIBRATED]


@pytest.mark.parametrize(
    ("name", "moment"), [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES]
)
def test_a_killed_run_ends_as_the_uninterrupted_one(
    name: str, moment: str, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["tiny.py"])
    monkeypatch.setattr(engine_trainer, "SAVE_EVERY", 4)
    recipe = recipe_of(name)
    if name not in whole:
        whole[name] = None  # a setting that fails, fails once
        monkeypatch.chdir(whole["folder"])
        main(recipe, ["fit"])
        whole[name] = left_by(versions("tiny")[-1])
    monkeypatch.chdir(tmp_path)
    with killed(("calibration", 1) if moment == "calibration" else MOMENTS[moment]):
        main(recipe, ["fit"])
    has_last = list(Path("runs").rglob("last.ckpt"))
    main(recipe, ["fit", *(["--ckpt_path", "last"] if has_last else [])])
    assert_same(left_by(versions("tiny")[-1]), whole[name])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"folder": tmp_path_factory.mktemp("whole")}
