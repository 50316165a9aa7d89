"""Files and folders written atomically: a reader, or a run started again after a kill, sees the old one or the new."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: str | Path, content: str | bytes) -> Path:
    """Write `content` (text as UTF-8) to `path` through a temporary file beside it; create missing folders.

    Returns:
        The path written.

    Raises:
        OSError: the folder cannot be created or written.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there takes its place when the block ends without error.

    It may also be a folder, if nothing is at `path` yet; see `atomic_folder` for one that is replaced.

    Raises:
        OSError: the folder cannot be created or written.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{final.name}-", dir=final.parent) as workplace:
        temporary = Path(workplace) / final.name
        yield temporary
        _finish(temporary)
        os.replace(temporary, final)


@contextmanager
def atomic_files(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder; its files move to `folder`, each atomically, when the block ends without an error.

    Other files of `folder` stay.
    """
    final = Path(folder)
    final.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=final) as workplace:
        yield Path(workplace)
        for path in sorted(Path(workplace).iterdir()):
            _finish(path)
            os.replace(path, final / path.name)


@contextmanager
def atomic_folder(folder: str | Path, *, holding: str, replace: bool) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; it takes its place when the block ends without an error.

    Args:
        folder: the final folder; its parents are created.
        holding: name of a file that every folder of this kind has. One without it is somebody else's and stays.
        replace: whether a folder of this kind that is there already gives way; otherwise it stays and ours is dropped.

    Raises:
        FileExistsError: `folder` holds something of another kind.
    """
    final = Path(folder)
    if final.exists() and any(final.iterdir()) and not (final / holding).is_file():
        raise FileExistsError(f"{final} exists and holds no {holding}, so it is not overwritten: choose another folder")
    final.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    temporary = workplace / "new"
    temporary.mkdir()
    try:
        yield temporary
        _finish(temporary)
        if replace and final.exists():
            final.rename(workplace / "old")
        try:
            temporary.rename(final)
        except OSError:  # another process was faster
            if replace:
                raise
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _finish(written: Path) -> None:
    """Bring a file or folder to the disk, and give it the usual rights, before it takes its name.

    Otherwise a crash might leave the name without the content; and safetensors writes files for their owner alone.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in (written, *written.rglob("*")):
        path.chmod(path.stat().st_mode | (0o777 if path.is_dir() else 0o666) & ~mask)
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def safe_name(name: str, source: str) -> str:
    """Return a file's name that was read from a file, if it is no more than a name.

    Args:
        name: as read; folders are allowed, ``additional_chat_templates/tools.jinja``.
        source: what held it, for the message.

    Raises:
        ValueError: it leads out of the folder it belongs in, or is none that every system takes.
    """
    parts = name.split("/")
    wrong = any(part in ("", ".", "..") or part != part.strip() for part in parts)
    if wrong or len(name) > 255 or not name.isprintable() or any(character in name for character in '\\:*?"<>|'):
        raise ValueError(f"{source} holds a file named {name[:80]!r}: a name inside its folder is wanted, no path")
    return name


def check_new(path: str | Path, option: str) -> Path:
    """Return a place to write to, if nothing is there but, maybe, an empty folder.

    Args:
        path: of the file or folder to be written.
        option: how the user named it, for the message.

    Raises:
        FileExistsError: something is there, a link without a target included; it stays as it is.
    """
    path = Path(path)
    is_empty_folder = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    if os.path.lexists(path) and not is_empty_folder:
        kind = "a folder that is not empty" if path.is_dir() else "a link" if path.is_symlink() else "a file"
        raise FileExistsError(
            f"{option}: {path} is {kind}, and nothing is overwritten: give another place, or remove it first"
        )
    return path
