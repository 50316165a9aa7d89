"""The `predict` command: predictions as rows with file names, classes or texts, in the format that --output names."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from pangu_modules.common.errors import UsageError
from pangu_modules.common.files import write_atomically
from pangu_modules.engine.checkpoint_io import save_atomically
from pangu_modules.engine.errors import usage_errors

FORMATS = (".csv", ".jsonl", ".pt")
NESTED = (list, tuple, dict)
Row = dict[str, Any]


class PredictionRows(Callback):
    """Collects the rows of each batch's predictions, while the batch with its file names is at hand."""

    def __init__(self) -> None:
        self.rows: list[list[Row]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch's rows."""
        self.rows.append(rows_of(pl_module, batch, outputs))


def rows_of(module: Any, batch: Any, outputs: Any) -> list[Row]:
    """Return the rows of a batch: the module's own ``prediction_rows(batch, outputs)``, otherwise its outputs.

    Raises:
        UsageError: the module has no such method, and its outputs are neither a tensor with a first dimension of
            samples nor a list of dictionaries.
    """
    own = getattr(module, "prediction_rows", None)
    if own is not None:
        rows: list[Row] = own(batch, outputs)
        return rows
    if isinstance(outputs, torch.Tensor) and outputs.ndim > 0:
        return [{"prediction": value} for value in outputs.tolist()]
    if isinstance(outputs, list) and all(isinstance(output, Mapping) for output in outputs):
        return [dict(output) for output in outputs]
    raise UsageError(
        f"--output: {type(module).__name__}.predict_step returns a {type(outputs).__name__}, of which no rows can be "
        "made: write .pt, or give the module a prediction_rows(batch, outputs)"
    )


def check_format(output: Path) -> Path:
    """Return the file for predictions.

    Raises:
        UsageError: its ending is none of `FORMATS`.
    """
    if output.suffix not in FORMATS:
        raise UsageError(f"--output: {output} ends in {output.suffix or 'nothing'!r}; give {', '.join(FORMATS)}")
    return output


def write_predictions(output: Path, batches: Sequence[Any], rows: Sequence[Sequence[Row]]) -> None:
    """Write predictions in the format of the file's ending.

    ``.jsonl`` has a row a line, ``.csv`` what of a row is one value (no lists), ``.pt`` one entry per batch: the rows
    where the module makes its own, otherwise what it returned.

    Args:
        output: the file.
        batches: for ``.pt``, one entry per batch.
        rows: for the others, the rows of each batch.
    """
    flat = [row for of_batch in rows for row in of_batch]
    if output.suffix == ".pt":
        save_atomically(list(batches), output)
    elif output.suffix == ".jsonl":
        write_atomically(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in flat))
    else:
        write_atomically(output, _as_csv(flat))


def continue_prompts(module: Any, prompts: Sequence[str]) -> list[Row]:
    """Return a language model's continuations of texts, a row each.

    Raises:
        UsageError: the module continues no texts, or one of them is empty.
    """
    continue_texts = getattr(module, "continue_texts", None)
    if continue_texts is None:
        raise UsageError(f"--prompt: {type(module).__name__} is no language model; leave it out to predict the data")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is not None:
        module.to(device)
    with usage_errors("--prompt"):
        rows: list[Row] = continue_texts(prompts)
    return rows


def _as_csv(rows: Sequence[Row]) -> str:
    single = [{name: value for name, value in row.items() if not isinstance(value, NESTED)} for row in rows]
    if not any(single):  # rows of nothing but lists: a column for each place
        single = [
            {f"{name}_{place}": item for name, value in row.items() for place, item in enumerate(value)} for row in rows
        ]
    columns = list(dict.fromkeys(name for row in single for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(single)
    return text.getvalue()
