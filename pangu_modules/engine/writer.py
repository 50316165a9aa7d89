"""One run, one writer: ``running.json`` in a run's folder names the process that writes there."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock

from pangu_modules.common.errors import UsageError
from pangu_modules.common.files import write_atomically

OWNER = "running.json"
GUARD = ".running.lock"  # held while the owner is read and written, not while the run lasts


class RunningElsewhereError(UsageError):
    """Another process writes the run; a pipeline that would have gone on there makes a folder of its own instead."""


@dataclass(frozen=True)
class Writer:
    """A process that writes a run.

    Attributes:
        host: name of the machine.
        process: its number there.
        begun: when the process began, in the kernel's ticks: a number that is given again has another; 0 if unknown.
        since: when it took the folder, for people.
    """

    host: str
    process: int
    begun: int
    since: str

    @classmethod
    def this(cls) -> Writer:
        """Return this process."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        return cls(socket.gethostname(), os.getpid(), _begun(os.getpid()) or 0, now)

    @classmethod
    def read(cls, folder: Path) -> Writer | None:
        """Return the writer that a folder names; None if it names none, or in a file that is damaged."""
        try:
            writer = cls(**json.loads((folder / OWNER).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        known = isinstance(writer.process, int) and isinstance(writer.begun, int)
        return writer if known and writer.process > 0 else None

    @property
    def local(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.host == socket.gethostname()

    @property
    def alive(self) -> bool:
        """Whether it may still write: of another machine's processes nothing is known."""
        if not self.local:
            return True
        begun = _begun(self.process)
        return begun is not None and self.begun in (0, begun)

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make this process the only writer of `folder`, which is created; a process that has died there is followed.

    Raises:
        RunningElsewhereError: another process, or an earlier run of this one, writes there.
        UsageError: the folder cannot be written.
    """
    _claim(folder)
    try:
        yield
    finally:
        if Writer.read(folder) is not None:  # else the folder was removed meanwhile
            (folder / OWNER).unlink(missing_ok=True)


def _claim(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / GUARD):
            before = Writer.read(folder)
            if before is not None and before.alive:
                raise RunningElsewhereError(_refusal(folder, before))
            write_atomically(folder / OWNER, json.dumps(asdict(Writer.this())) + "\n")
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror or error}; make it writable, or remove it") from error
    if before is not None:
        print(f"{folder}: {before} has ended before its run did; this one goes on there", file=sys.stderr)


def _refusal(folder: Path, writer: Writer) -> str:
    if writer.local:
        return f"{folder} is being written by {writer}: wait until it has ended, or start a run of your own with fit"
    return (
        f"{folder} is being written by {writer}: wait until it has ended; if that process is gone, "
        f"remove {folder / OWNER}"
    )


def _begun(process: int) -> int | None:
    """Return when a process of this machine began, in ticks; None without one, 0 where the kernel does not tell."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # another user's
        pass
    try:
        state, *others = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # no such file system
        return 0
    return None if state in "ZX" else int(others[18])  # a zombie writes nothing any more
