"""Checkpoint files, checked before anything in them is used."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

from pangu_modules.common.errors import UsageError

_whole: set[tuple[int, ...]] = set()  # files found whole: a command comes to the same file several times


def check_checkpoint(path: str | Path) -> None:
    """Refuse a checkpoint file that is cut off, changed by a single bit, or no checkpoint at all.

    ``torch.save`` writes a zip archive with a CRC-32 of every entry, which ``torch.load`` does not compare: it reads
    flipped bits of weights as other weights. Reading all of it takes about a second a gigabyte.

    Raises:
        UsageError: the file is damaged, or was not written by ``torch.save``.
    """
    remedy = "copy it again from where it is whole, or take another checkpoint"
    try:
        state = os.stat(path)
        identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        if identity in _whole:
            return
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
        empty = Path(path).stat().st_size == 0
        reason = "it is empty" if empty else f"cut off, changed, or not written by fit: {error}"
        raise UsageError(f"{path} is no whole checkpoint ({reason}); {remedy}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    if damaged is not None:
        raise UsageError(f"{path} is damaged (its part {damaged} is not what was written); {remedy}")
    if not any(name.endswith("/data.pkl") for name in names):
        raise UsageError(f"{path} is no checkpoint (a zip archive of other things); give a .ckpt file of fit")
    _whole.add(identity)
