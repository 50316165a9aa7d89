"""AtomicCheckpointIO: checkpoints that are whole or not there, written beside their place and renamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from pangu_modules.common.files import atomic_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own moves a file out of the system's temporary folder, on another disk a copy that a kill can cut."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint`; a path with a scheme (``s3://``) is left to Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_file(path) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


def write_checkpoints_atomically(trainer: Trainer) -> None:
    """Use `AtomicCheckpointIO`, unless the strategy shards checkpoints or the user has chosen a plugin."""
    try:
        current = trainer.strategy.checkpoint_io
    except NotImplementedError:  # strategies that shard write folders of their own
        return
    if type(current) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
