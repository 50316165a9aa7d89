"""Toy recipes for tests of runs, constant or by schedule, a pipeline, and what a refused command line says."""

from __future__ import annotations

from pathlib import Path

import pytest
from kills import KillSwitch
from toys import ToyData, ToyModule, Widen

from callbacks import WeightAverage
from pangu_modules import OptimizerConfig, Recipe, Stage
from pangu_modules.engine.cli import main

FIRST = Path("runs/toy/version_0")
PLAIN = {"accelerator": "cpu", "enable_progress_bar": False}
SCHEDULES = {
    "epochs": {"max_epochs": 3},
    "steps": {"max_epochs": -1, "max_steps": 20},
    "validations inside epochs": {"max_epochs": 3, "val_check_interval": 4},
    "accumulation": {"max_epochs": 3, "accumulate_grad_batches": 2},
}


def stage(schedule: str, start_from: str | None = None) -> Stage:
    return Stage(
        module=ToyModule.Config(dropout=0.3),
        data=ToyData.Config(batch_size=8, eval_batch_size=8),
        callbacks={
            "kill": KillSwitch.Config(),
            "widen": Widen.Config(),
            "ema": WeightAverage.Config(decay=0.9),
        },
        trainer={**PLAIN, "log_every_n_steps": 2, **SCHEDULES[schedule]},
        start_from=start_from,
    )


CONSTANT = Recipe(
    module=ToyModule.Config(optimizer=OptimizerConfig(schedule="constant", warmup_share=0)),
    data=ToyData.Config(batch_size=8, eval_batch_size=8),
    callbacks={"widen": Widen.Config()},
    trainer={**PLAIN, "log_every_n_steps": 1, "max_epochs": 2},
)
STAGED = Recipe(stages={"first": stage("epochs"), "second": stage("epochs", start_from="first")})


def refusal(words: list[str], capsys: pytest.CaptureFixture[str], recipe: Recipe = CONSTANT) -> str:
    """Return the message of a command line that ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(recipe, words)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[0]
