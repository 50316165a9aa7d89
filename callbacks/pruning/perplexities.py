"""The record of perplexities around pruning: measured when the model is cut and at the end, maybe by two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from lightning.pytorch import Trainer
from pydantic import Field

from pangu_modules.common.config import Config
from pangu_modules.common.files import write_atomically
from pangu_modules.report.parts import add_table
from pangu_modules.report.tables import Column
from pangu_modules.training.callback import run_folder

LABELS = {
    "before": "before pruning",
    "unrepaired": "pruned, not repaired",
    "pruned": "pruned",
    "recovered": "after recovery",
}
COLUMNS = {"model": Column("model"), "perplexity": Column("perplexity", "per token"), "times": Column("times")}


class Perplexities(Config):
    """Perplexities per token on the test set, by stage of the work."""

    measured: ClassVar[bool] = True

    before: float = Field(description="Of the model before pruning.")
    unrepaired: float | None = Field(None, description="Of the cut model before its outputs are repaired, if they are.")
    pruned: float = Field(description="Of the pruned model.")
    recovered: float | None = Field(None, description="Of the trained model; known when the run has ended.")


def write_perplexities(folder: Path, name: str, record: Perplexities) -> None:
    """Write the record of the callback `name` into the run's folder, and its table into the run's report."""
    values = record.model_dump()  # not plain(): JSON data would lose an infinite perplexity
    write_atomically(record_file(folder, name), json.dumps(values, indent=1) + "\n")
    rows = [
        {"model": label, "perplexity": values[stage], "times": values[stage] / record.before}
        for stage, label in LABELS.items()
        if values[stage] is not None
    ]
    add_table(folder, f"{name}-1-perplexity", f"{name}: perplexity on the test set", rows, COLUMNS)


def add_recovered(trainer: Trainer, name: str) -> None:
    """Add the perplexity of the test that ends a run to the record, which an earlier process may have written."""
    folder = run_folder(trainer)
    if folder is None:
        return
    file, value = record_file(folder, name), trainer.callback_metrics.get("test/perplexity")
    if file.is_file() and value is not None:
        record = Perplexities.model_validate(json.loads(file.read_text(encoding="utf-8")))
        write_perplexities(folder, name, record.derive(recovered=float(value)))


def record_file(folder: Path, name: str) -> Path:
    """Return the file of the record of the callback `name`."""
    return folder / f"{name}-perplexities.json"
