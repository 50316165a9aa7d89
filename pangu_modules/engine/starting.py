"""Errors before the first batch: they come of a value of the configuration, and are answered like a bad value."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from pangu_modules.common.errors import UsageError
from pangu_modules.engine.errors import usage_errors
from pangu_modules.engine.own_modules import missing_of_ours


class StartMark(Callback):
    """Knows whether a run has come to its first batch, be it the sanity check's.

    Args:
        begin: called once when it has: what a run that is refused must not have written.
    """

    def __init__(self, begin: Callable[[], None] | None = None) -> None:
        self.reached = False
        self._begin = begin

    def begin(self) -> None:
        """Call what was given, unless it was called; for a run that has no batch left."""
        begin, self._begin = self._begin, None
        if begin is not None:
            begin()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the mark."""
        self.reached = True
        if trainer.is_global_zero:
            self.begin()

    on_sanity_check_start = on_validation_start = on_test_start = on_predict_start = on_train_start


@contextmanager
def usage_errors_until_start(trainer: Trainer, data: Any) -> Iterator[None]:
    """Turn what goes wrong while data, callbacks, model and optimizer are set up into a UsageError that names the part.

    A missing file, a ratio that leaves nothing or an unknown number of steps are values to change; from the first batch
    on an error is no longer the configuration's, and keeps its traceback. The trainer has a `StartMark`.
    """
    try:
        yield
    except Exception as error:
        if any(isinstance(callback, StartMark) and callback.reached for callback in trainer.callbacks):  # type: ignore[attr-defined]
            if metric := _missing_metric(error):
                raise UsageError(f"{_part_of(error, trainer, data)}: {metric}") from error
            raise
        if isinstance(error, RuntimeError) and "loading state_dict" in str(error):
            first = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
            raise UsageError(f"--ckpt_path: the checkpoint's tensors do not fit the module ({first})") from error
        if isinstance(error, AttributeError) and (missing := missing_of_ours(error, trainer.lightning_module)):
            raise UsageError(f"{_part_of(error, trainer, data)}: {missing}") from error
        with usage_errors(_part_of(error, trainer, data)):
            raise


def _missing_metric(error: Exception) -> str:
    """Return Lightning's sentence of a metric that a callback watches and nothing logs, or an empty string."""
    first = " ".join(str(error).split()).partition(" HINT:")[0]
    return first if re.search(r"conditioned on metric|could not find the monitored key", first) else ""


def _part_of(error: Exception, trainer: Any, data: Any) -> str:
    """Return the part of the recipe whose method raised the error, by its name on the command line."""
    names = {id(data): "data", id(trainer.lightning_module): "module"}
    names |= {id(callback): f"callbacks.{callback.name}" for callback in trainer.callbacks if hasattr(callback, "name")}
    owners = [id(frame.f_locals.get("self")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((names[owner] for owner in owners if owner in names), "trainer")
