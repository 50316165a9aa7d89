"""Calibration text for callbacks: windows and batches taken from the datamodule's stream of sequences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Trainer

from pangu_modules.llm.calibration.windows import CalibrationConfig, draw_windows, length_of
from pangu_modules.training.objectives import Batch
from pangu_modules.training.randomness import unchanged_randomness

Sequence = Mapping[str, Any]


def calibration_windows(trainer: Trainer, config: CalibrationConfig) -> list[Batch]:
    """Draw calibration windows without touching training's random numbers.

    A datamodule with `calibration_sequences` is asked for its stream; of any other the training loader's dataset is
    read in an order of our own, until there are enough windows.

    Raises:
        ValueError: there is no datamodule, no dataset to read, no such source, or too little text.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if data is None:
        raise ValueError("pruning calibrates on the datamodule's training data: run the trainer with datamodule=...")
    generator = torch.Generator().manual_seed(config.seed)
    with unchanged_randomness():
        if hasattr(data, "calibration_sequences"):
            return list(draw_windows(_enough(data, config), config, generator))
        if config.source:
            raise ValueError(
                f"calibration.source={config.source!r}: {type(data).__name__} cannot read another text; take one of "
                "datamodules, or leave the source empty"
            )
        return list(draw_windows(sequences_of_training(data, generator), config, generator))


def calibration_batches(trainer: Trainer, steps: int, name: str) -> list[Batch]:
    """Return as many batches of calibration data as there are for `steps` steps: halved until the data have them.

    Args:
        trainer: its datamodule is read, with seed 0.
        steps: batches at most; the taker repeats them.
        name: of the callback, for messages.

    Raises:
        ValueError: the datamodule has no stream of calibration sequences, or less than one batch.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(data, "calibration_sequences"):
        raise ValueError(
            f"callback {name!r}: init='learned' reads calibration_sequences(seed) of the datamodule; run the trainer "
            "with one of datamodules, or set init='svid' or 'none'"
        )
    with unchanged_randomness():
        loader = data.train_dataloader()
        size = loader.batch_size
        while True:
            samples = list(islice(data.calibration_sequences(0, expected=steps * size), steps * size))
            if len(samples) == steps * size:
                groups = (samples[start : start + size] for start in range(0, len(samples), size))
                return [loader.collate_fn(group) for group in groups]
            if steps == 1:
                raise ValueError(
                    f"callback {name!r}: init='learned' needs a batch of {size} sequences, the calibration data has "
                    f"{len(samples)}: lower data.batch_size or give more text"
                )
            steps //= 2


def sequences_of_training(data: Any, generator: torch.Generator) -> Iterator[Sequence]:
    """Stream the training loader's dataset in an order drawn from `generator`, for datamodules of other projects.

    Raises:
        ValueError: the dataset is not map-style.
    """
    dataset: Any = getattr(data.train_dataloader(), "dataset", None)
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ValueError(
            f"{type(data).__name__} has no map-style training dataset to calibrate on: give it a method "
            "calibration_sequences(seed)"
        )
    order = torch.randperm(len(dataset), generator=generator).tolist()
    return (dataset[index] for index in order)


def _enough(data: Any, config: CalibrationConfig) -> list[Sequence]:
    """Take sequences from the stream until `num_samples` of them are long enough, or all there are.

    Where too many are short, the draw is begun again for twice as many. Each draw is one of its own, and windows are
    taken from its front: by this, windows are the same as they have been since the first release of the recipes.
    """
    size = data.train_dataloader().batch_size
    expected = -(-config.num_samples // size) * size
    source = {"source": config.source} if config.source else {}
    while True:
        stream = data.calibration_sequences(config.seed, expected=expected, **source)
        sequences = list(islice(stream, expected))
        if sum(length_of(sequence) >= config.sequence_length for sequence in sequences) >= config.num_samples:
            return sequences
        if len(sequences) < expected:
            return sequences
        expected *= 2
