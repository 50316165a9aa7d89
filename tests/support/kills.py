"""Kills at named moments, inside the test's process: what a run leaves on disk then is what SIGKILL would leave.

The error is no `Exception`, so that nothing of a run takes it for one; Lightning's clean-up after it writes nothing.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Trainer

from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.engine import checkpoint_io, metrics, resume_checkpoint
from pangu_modules.training.callback import RecipeCallback


class Killed(BaseException):
    pass


class KillSwitch(RecipeCallback):
    """Kills at a moment of the class, which is no field: the configuration of a resumed run is the same."""

    class Config(BaseConfig):
        pass

    moment: ClassVar[tuple[str, int]] = ("", 0)  # the hook, and how many calls of it are left

    @classmethod
    def pull(cls, hook: str) -> None:
        wanted, left = cls.moment
        if hook == wanted:
            cls.moment = (wanted, left - 1)
            if left == 1:
                raise Killed(hook)

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self.pull("setup fit" if stage == "fit" else "setup test")

    def on_train_batch_start(self, *_: Any) -> None:
        self.pull("step")

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.pull("validation")

    def on_test_batch_start(self, *_: Any) -> None:
        self.pull("test")


MOMENTS: dict[str, tuple[str, int]] = {
    "setup": ("setup fit", 1),
    "first step": ("step", 1),
    "step inside an epoch": ("step", 6),
    "later step": ("step", 15),
    "first validation": ("validation", 1),
    "later validation": ("validation", 3),
    "before best is written": ("before best.ckpt", 1),
    "between best and last": ("after best.ckpt", 2),
    "while last is written": ("before last.ckpt.new", 2),
    "before last is renamed": ("after last.ckpt.new", 3),
    "after last is renamed": ("last is there", 3),
    "a row of metrics": ("row", 5),
    "setup of the test": ("setup test", 1),
    "test": ("test", 1),
}


@contextmanager
def killed(moment: tuple[str, int]) -> Iterator[None]:
    """Within the block, the run ends at the moment; the block must not end without it."""

    def around(
        function: Callable[..., Any], before: Callable[..., str], after: Callable[..., str]
    ) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            KillSwitch.pull(before(*arguments))
            result = function(*arguments, **named)
            KillSwitch.pull(after(*arguments))
            return result

        return call

    KillSwitch.moment = moment
    with pytest.MonkeyPatch.context() as patch:
        save, rename = checkpoint_io.save_atomically, resume_checkpoint._replace
        row = metrics.MetricsFile.log_metrics
        patch.setattr(
            checkpoint_io,
            "save_atomically",
            around(save, lambda _, path: f"before {path.name}", lambda _, path: f"after {path.name}"),
        )
        patch.setattr(resume_checkpoint, "_replace", around(rename, lambda *_: "", lambda *_: "last is there"))
        patch.setattr(metrics.MetricsFile, "log_metrics", around(row, lambda *_: "row", lambda *_: ""))
        try:
            yield
        except Killed:
            return
        finally:
            KillSwitch.moment = ("", 0)
    raise AssertionError(f"the run ended before {moment}")


def left_by(folder: Path) -> dict[str, Any]:
    """Return all that a stage's run leaves and that two equal runs have in common."""
    result = json.loads((folder / "result.json").read_text())
    with (folder / "metrics.csv").open() as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    for row in rows:
        if "test/loss" in row:  # Lightning's counts after max_steps are those of the process that trained
            del row["epoch"], row["step"]
    left: dict[str, Any] = {
        "rows": rows,
        "result": {name: result[name] for name in ("metrics", "parameters", "epochs", "seed")},
    }
    for name in ("last", "best"):
        path = folder / "checkpoints" / f"{name}.ckpt"
        if path.is_file():
            content = torch.load(path, weights_only=True)
            left[name] = {"step": content["global_step"], "weights": content["state_dict"]}
    return left


def assert_same(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_same(one[name], other[name], f"{where}/{name}")
    else:
        assert one == other, where
