"""The cache folder: each entry is made once, by one process, and appears complete or not at all."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from pangu_modules.common.files import atomic_file


def cache_folder() -> Path:
    """Return the folder of what is made once and kept: ``$PANGU_CACHE``, or else ``~/.cache/pangu-recipes``."""
    named = os.environ.get("PANGU_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "pangu-recipes"


@contextmanager
def locked(name: str) -> Iterator[Path]:
    """Yield the path `name` in the cache, while no other process is inside the same block for it.

    Raises:
        OSError: the cache cannot be written; the message names ``PANGU_CACHE``.
    """
    path = cache_folder() / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise OSError(f"cannot write {path.parent}: set PANGU_CACHE to a folder that can be written") from error
    with lock:
        yield path


@contextmanager
def beside_training() -> Iterator[None]:
    """Give the random states back at the end: what is made once must not change the run that happens to make it."""
    import numpy as np
    import torch

    # Not Lightning's isolate_rng: importing it moves Python's state. Entries are made on the CPU.
    python, legacy, ours = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(ours)


def cached(name: str, make: Callable[[Path], object]) -> Path:
    """Return the file `name` of the cache; the first process to ask makes it, others wait for it.

    Args:
        name: of the entry; a new version of its content needs a new name.
        make: writes the entry to the path it is given, which does not exist yet.

    Raises:
        OSError: the cache cannot be written; the message names ``PANGU_CACHE``.
    """
    path = cache_folder() / name
    if path.exists():
        return path
    with beside_training(), locked(name):
        if not path.exists():
            with atomic_file(path) as temporary:
                make(temporary)
    return path
