"""run_folder: a recipe's, what is logged to, what was named, and never the current folder."""

from __future__ import annotations

import lightning
import pytest
from lightning.pytorch.loggers import CSVLogger

from pangu_modules.training.callback import RECIPE_FOLDER, run_folder


def trainer(**arguments):
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(accelerator="cpu", **{"logger": False, **quiet, **arguments})


def test_the_folder_of_a_run(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert run_folder(trainer(default_root_dir=tmp_path / "named")) == tmp_path / "named"
    logged = run_folder(trainer(logger=CSVLogger(tmp_path / "logs", name="a", version=3)))
    assert logged == tmp_path / "logs" / "a" / "version_3"
    recipe = trainer(logger=CSVLogger(tmp_path / "logs"))
    setattr(recipe, RECIPE_FOLDER, str(tmp_path / "run"))
    assert run_folder(recipe) == tmp_path / "run"


@pytest.mark.parametrize("arguments", [{}, {"default_root_dir": "."}, {"fast_dev_run": True, "logger": True}])
def test_the_users_folder_is_not_written_to_and_that_is_said_once(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    said = []
    monkeypatch.setattr("pangu_modules.training.callback.rank_zero_info", said.append)
    plain = trainer(**arguments)
    assert run_folder(plain) is None
    assert run_folder(plain) is None
    assert len(said) == 1
