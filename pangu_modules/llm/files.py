"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_folder(folder: str | Path, *, keep_existing: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; it takes its name when the block ends without an error.

    Args:
        folder: the final folder; its parents are created.
        keep_existing: when another process finished the same folder meanwhile, keep that one and drop ours.

    Raises:
        FileExistsError: `folder` exists and is not empty, and `keep_existing` is False.
    """
    final = Path(folder)
    if not keep_existing and final.exists() and any(final.iterdir()):
        raise FileExistsError(f"{final} exists and is not empty: choose another folder, or remove it first")
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes folders that only their owner can read
        try:
            os.replace(temporary, final)
        except OSError:
            if not keep_existing:
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
