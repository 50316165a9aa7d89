"""Runs: their folders, their commands, stages that continue, and an exact resume after SIGTERM and SIGKILL."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from toys import ToyData, ToyModule, Widen

from pangu_modules import Recipe, Stage
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import RUN_DIR_VARIABLE, new_folder, versions

TRAINER = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False}
SINGLE = Recipe(
    module=ToyModule.Config(), data=ToyData.Config(batch_size=8), callbacks={"widen": Widen.Config()}, trainer=TRAINER
)
STAGED = Recipe(
    stages={
        "first": Stage(module=ToyModule.Config(), data=ToyData.Config(batch_size=8), trainer=TRAINER),
        "second": Stage(
            module=ToyModule.Config(),
            data=ToyData.Config(batch_size=8),
            callbacks={"widen": Widen.Config()},
            trainer=TRAINER,
            start_from="first",
        ),
    }
)
SUPPORT = Path(__file__).parents[2] / "support"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "argv", ["toy.py"])


def run(recipe: Recipe, *words: str) -> None:
    os.environ.pop(RUN_DIR_VARIABLE, None)
    main(recipe, list(words))


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_fit_leaves_a_complete_folder(capsys: pytest.CaptureFixture[str]) -> None:
    run(SINGLE, "fit", "--module.width", "6")
    folder = Path("runs/toy/version_0")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names >= {
        "config.yaml",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "metrics.csv",
        "result.json",
        "report.html",
        "report.md",
    }
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["module"]["width"], config["callbacks"]["widen"]["width"]) == (6, 16)
    printed = capsys.readouterr().out
    assert "Result on the test set" in printed
    assert "version_0/report.html" in printed
    result = json.loads((folder / "result.json").read_text())
    assert result["parameters"] == (4 * 16 + 16) + (16 * 2 + 2)
    assert set(result["metrics"]) == {"test/loss"}


def test_the_config_of_a_run_repeats_it_exactly() -> None:
    run(SINGLE, "fit", "--module.width", "6", "--callbacks.widen", "null")
    run(SINGLE, "fit", "--config", "runs/toy/version_0/config.yaml")
    first, second = (Path(f"runs/toy/version_{number}") for number in (0, 1))
    assert (first / "config.yaml").read_text() == (second / "config.yaml").read_text()
    assert_same_weights(first / "checkpoints/last.ckpt", second / "checkpoints/last.ckpt")


@pytest.mark.parametrize("recipe", [SINGLE, STAGED], ids=["single", "staged"])
def test_the_next_commands_of_the_report_run(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["toy.py", "fit", "--data.api_key", "my-secret"])
    run(recipe, "fit")
    text = Path("runs/toy/version_0/report.md").read_text()
    assert "python toy.py fit --data.api_key '***'" in text
    commands = text.partition("## Next commands\n\n```\n")[2].partition("\n```")[0].splitlines()
    words = [shlex.split(command) for command in commands]
    assert [parts[:3] for parts in words] == [
        ["python", "toy.py", command] for command in ("validate", "test", "predict", "export", "plan")
    ]
    for parts in words:
        run(recipe, *parts[2:])


def test_other_commands_use_the_newest_run(capsys: pytest.CaptureFixture[str]) -> None:
    run(SINGLE, "fit")
    run(SINGLE, "test")
    assert "test/loss" in capsys.readouterr().out
    run(SINGLE, "validate", "--ckpt_path", "best")
    assert "val/loss" in capsys.readouterr().out
    run(SINGLE, "predict")
    predictions = torch.load("runs/toy/version_0/predictions.pt", weights_only=True)
    assert sum(len(batch) for batch in predictions) == 16
    run(SINGLE, "export")
    exported = torch.load("runs/toy/version_0/export/state_dict/model.pt", weights_only=True)
    trained = weights(Path("runs/toy/version_0/checkpoints/last.ckpt"))
    assert torch.equal(exported["0.weight"], trained["model.0.weight"])
    with pytest.raises(SystemExit):
        run(SINGLE, "export", "--format", "onxx")
    assert "unknown format 'onxx'; ToyModule offers" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(SINGLE, "export", "--dtype", "float16")
    assert "--dtype: exports of ToyModule have no such choice" in capsys.readouterr().err


def test_plan_counts_without_data(capsys: pytest.CaptureFixture[str]) -> None:
    run(SINGLE, "plan", "--json")
    figures = json.loads(capsys.readouterr().out)
    assert figures["parameters"] == figures["active_parameters"] == figures["trainable_parameters"] == 4 * 8 + 8 + 18
    assert figures["forward_flops_per_sample"] == 2 * (4 * 8 + 8 * 2)
    run(SINGLE, "plan")
    assert "parameters" in capsys.readouterr().out
    assert not Path("runs").exists()


def test_stages_pass_a_checkpoint_on_and_continue_where_they_stopped() -> None:
    run(STAGED, "fit")
    folder = Path("runs/toy/version_0")
    second = json.loads((folder / "second/result.json").read_text())
    assert second["parameters"] == (4 * 16 + 16) + (16 * 2 + 2)
    before = weights(folder / "second/checkpoints/last.ckpt")
    (folder / "second/result.json").unlink()  # as after a kill in the second stage
    (folder / "second/checkpoints/last.ckpt").unlink()
    first_written = (folder / "first/result.json").stat().st_mtime_ns
    run(STAGED, "fit")
    assert len(versions("toy")) == 1
    assert (folder / "first/result.json").stat().st_mtime_ns == first_written
    after = weights(folder / "second/checkpoints/last.ckpt")
    assert all(torch.equal(before[name], after[name]) for name in before)
    run(STAGED, "fit")  # all finished: a new run
    assert len(versions("toy")) == 2
    run(STAGED, "fit", "--stage", "second", "--second.module.dropout", "0")
    assert len(versions("toy")) == 2


def test_resuming_longer_keeps_the_metrics_of_both() -> None:
    run(SINGLE, "fit", "--trainer.max_epochs", "1")
    run(SINGLE, "fit", "--ckpt_path", "last", "--trainer.max_epochs", "3")
    assert len(versions("toy")) == 1
    rows = Path("runs/toy/version_0/metrics.csv").read_text().splitlines()
    header = rows[0].split(",")
    epochs = {row.split(",")[header.index("epoch")] for row in rows[1:] if row.split(",")[header.index("val/loss")]}
    assert epochs == {"0", "1", "2"}


def test_versions_count_up() -> None:
    first = new_folder("x")
    assert (first.name, new_folder("x").name) == ("version_0", "version_1")
    assert new_folder("x", "dry_run").name == "dry_run_0"
    assert [path.name for path in versions("x")] == ["version_0", "version_1"]


# Interrupted at a random step, resumed, equal.


def start(*words: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != RUN_DIR_VARIABLE}
    command = [sys.executable, str(SUPPORT / "resume_recipe.py"), "fit", *words]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    here = Path.cwd()
    os.chdir(folder)
    process = start()
    output, _ = process.communicate(timeout=300)
    os.chdir(here)
    assert process.returncode == 0, output
    return folder / "runs/resume_recipe/version_0/checkpoints/last.ckpt"


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_resume_after_a_signal_equals_the_uninterrupted_run(kind: signal.Signals, uninterrupted: Path) -> None:
    last = Path("runs/resume_recipe/version_0/checkpoints/last.ckpt")
    process = start()
    while not last.is_file():  # from here on there is something to resume from
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    time.sleep(random.uniform(0.05, 1.0))  # of about 1.2 s that are left
    process.send_signal(kind)
    process.communicate(timeout=60)
    assert not Path("runs/resume_recipe/version_0/result.json").exists(), "the signal came too late to test anything"
    resumed = start("--ckpt_path", "last")
    output, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, output
    assert_same_weights(last, uninterrupted)


def test_two_processes_share_one_run_folder() -> None:
    environment = {name: value for name, value in os.environ.items() if name != RUN_DIR_VARIABLE}
    command = [sys.executable, str(SUPPORT / "toy_recipe.py"), "fit"]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in versions("toy_recipe")] == ["version_0"]
    assert (Path("runs/toy_recipe/version_0") / "report.html").is_file()
    assert done.stdout.count("run folder") == 1  # only the first process reports


def test_a_package_of_the_user_that_shadows_ours_is_no_obstacle_to_a_recipe_without_it(tmp_path: Path) -> None:
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "__init__.py").write_text("")
    (tmp_path / "mine.py").write_text(
        '"""Mine."""\n'
        "from datamodules import DigitsData\n"
        "from pangu_modules import ImageClassifier, Recipe\n"
        'args = {"img_size": 28, "patch_size": 14, "in_chans": 1, "embed_dim": 8, "depth": 1, "num_heads": 1}\n'
        'module = ImageClassifier.Config(backbone="vit_tiny_patch16_224", model_args=args)\n'
        "recipe = Recipe(module=module, data=DigitsData.Config(train_size=64))\n"
        'if __name__ == "__main__":\n'
        "    recipe.main()\n"
    )
    command = [sys.executable, "mine.py", "fit", "--trainer.fast_dev_run", "true"]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "run folder" in done.stdout


def test_loggers_that_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    run(SINGLE, "fit", "--loggers", "[csv,tensorboard]")
    folder = Path("runs/toy/version_0")
    assert (folder / "metrics.csv").is_file()
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    with pytest.raises(SystemExit):  # it is not in the environment of the tests
        run(SINGLE, "fit", "--loggers", "[wandb]")
    assert "loggers: " in capsys.readouterr().err
