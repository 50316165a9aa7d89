"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODEL_FILE = "config.json"


@contextmanager
def atomic_model_folder(folder: str | Path, *, replace: bool) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; it takes its place when the block ends without an error.

    Args:
        folder: the final folder; its parents are created.
        replace: whether a model that is there already gives way; otherwise it stays and ours is dropped.

    Raises:
        FileExistsError: `folder` holds something that is not a model.
    """
    final = Path(folder)
    if final.exists() and any(final.iterdir()) and not (final / MODEL_FILE).is_file():
        raise FileExistsError(
            f"{final} exists and holds no {MODEL_FILE}, so it is not overwritten: choose another folder"
        )
    final.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    temporary = workplace / "new"
    temporary.mkdir()
    try:
        yield temporary
        _open_to_readers(temporary)
        if replace and final.exists():
            final.rename(workplace / "old")
        try:
            temporary.rename(final)
        except OSError:  # another process was faster
            if replace:
                raise
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


@contextmanager
def atomic_file(file: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `file`; what is written there takes its place when the block ends without error."""
    final = Path(file)
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{final.name}-", dir=final.parent) as workplace:
        temporary = Path(workplace) / final.name
        yield temporary
        os.replace(temporary, final)


def _open_to_readers(folder: Path) -> None:
    """Give new files the usual rights: safetensors writes them for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
