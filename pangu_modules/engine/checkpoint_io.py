"""Checkpoints on disk: written whole or not at all, and checked before they are read."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from pangu_modules.common.checkpoints import check_checkpoint
from pangu_modules.common.errors import UsageError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own goes through the system's temporary folder: a copy that a kill can cut, and that stays there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint`; a path with a scheme (``s3://``) is left to Lightning.

        Raises:
            OSError: it cannot be written; an older file is still there, and nothing of the new one.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            save_atomically(checkpoint, Path(path))


def save_atomically(content: Any, path: Path) -> None:
    """Write what ``torch.save`` makes of `content`, through a file beside `path` that an error removes.

    Raises:
        OSError: there is no room, or no right to write.
    """
    buffer = io.BytesIO()  # torch turns a full disk's error into one of its own that names neither disk nor file
    torch.save(content, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")  # one name: what a kill leaves, the next save writes over
    try:
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint that fit has written, checked; its tensors are read from the file when they are used.

    Raises:
        UsageError: the file is damaged, foreign, or holds no configuration.
    """
    check_checkpoint(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"--ckpt_path: {path} holds other things than fit writes ({reason})") from error
    stored = content.get("hyper_parameters") if isinstance(content, dict) else None
    if not isinstance(stored, dict) or not isinstance(stored.get("config"), dict):
        raise UsageError(f"--ckpt_path: {path} holds no configuration: give a .ckpt file that fit has written")
    return content


def write_checkpoints_atomically(trainer: Trainer) -> None:
    """Use `AtomicCheckpointIO`, unless the strategy shards checkpoints or the user has chosen a plugin."""
    try:
        current = trainer.strategy.checkpoint_io
    except NotImplementedError:  # strategies that shard write folders of their own
        return
    if type(current) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
