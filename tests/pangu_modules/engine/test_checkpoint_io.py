"""Checkpoints are replaced whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy

from pangu_modules.engine.checkpoint_io import AtomicCheckpointIO, write_checkpoints_atomically


def trainer(**arguments: Any) -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, **arguments)


def test_a_checkpoint_cut_off_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def cut(descriptor: int) -> None:
        os.truncate(descriptor, 4)
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", cut)
    with pytest.raises(OSError, match="no space"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [left.name for left in tmp_path.iterdir()] == ["last.ckpt"]  # the half-written one is gone


def test_only_lightnings_own_plugin_is_replaced() -> None:
    plain = trainer()
    write_checkpoints_atomically(plain)
    assert type(plain.strategy.checkpoint_io) is AtomicCheckpointIO
    chosen = trainer(plugins=[AsyncCheckpointIO()])
    write_checkpoints_atomically(chosen)
    assert type(chosen.strategy.checkpoint_io) is AsyncCheckpointIO
    write_checkpoints_atomically(trainer(strategy=ModelParallelStrategy()))  # shards: nothing to do, no error
