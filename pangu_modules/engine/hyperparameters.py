"""LogHyperparameters: the settings of a run in the loggers that show them, e.g. in TensorBoard's HPARAMS tab."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger


class LogHyperparameters(Callback):
    """Give a stage's configuration to every logger but the CSV file's, beside which ``config.yaml`` lies.

    Args:
        plain: the configuration as plain data.
        metric: what TensorBoard lists beside the settings of runs; None lists none.
    """

    def __init__(self, plain: Mapping[str, Any], metric: str | None) -> None:
        self.settings = dict(leaves(plain))
        self.metric = metric

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log them."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                # Without a metric TensorBoard keeps no settings; NaN stands for "not measured yet" and is not drawn.
                logger.log_hyperparams(self.settings, {self.metric or "val/loss": math.nan})
            elif not isinstance(logger, CSVLogger):
                logger.log_hyperparams(self.settings)


def leaves(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested plain data by dotted names; lists as text, and no empty mappings."""
    for name, value in plain.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, bool | int | float | str) else str(value)
