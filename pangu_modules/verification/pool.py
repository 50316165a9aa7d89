"""A few worker processes for verifiers, shared by all threads of a process, each job with a deadline.

They are plain child processes and not `multiprocessing`'s: those import the user's script again, and cannot be started
by Lightning's or a loader's own workers. A worker that misses a deadline or dies is replaced. None outlives its parent:
the socket closes with it.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

SIZE = 2
START_SECONDS = 120.0  # importing sympy and reasoning-gym takes one to two on an idle machine
KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "HOME", "TMPDIR")


class WorkerError(Exception):
    """A worker gave no score: the deadline was missed, the worker died, or the verifier raised."""


class LoadError(WorkerError):
    """A verifier cannot be loaded, so that it will never give a score."""


class _Worker:
    """One process, its side of the socket, and the verifiers that it has loaded."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", "-m", "pangu_modules.verification.worker", str(theirs.fileno())]
            self.process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_environment(),
            )
        self.socket = ours
        self.loaded: set[str] = set()

    def ask(self, job: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Return the answer to a job; TimeoutError after so many seconds, OSError if the process is gone."""
        end = time.monotonic() + seconds
        self.socket.settimeout(seconds)
        self.socket.sendall(json.dumps(job).encode() + b"\n")
        received = bytearray()
        while not received.endswith(b"\n"):
            self.socket.settimeout(max(end - time.monotonic(), 1e-3))
            part = self.socket.recv(1 << 16)
            if not part:
                raise ConnectionError("closed")
            received += part
        return dict(json.loads(received))

    def end(self) -> int:
        """Kill the process, wait for it (no zombie stays), and return its exit code."""
        self.socket.close()
        self.process.kill()
        return self.process.wait()


class WorkerPool:
    """Workers for verifiers; `judge` may be called from any number of threads.

    Args:
        size: workers at most; they start when they are needed.
    """

    _all: set[_Worker]
    _idle: list[_Worker]

    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._forget()
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._leave_to_parent)

    def judge(self, target: str, text: str, reference: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Return what a verifier says of a text, as the fields of a `Score`.

        Args:
            target: the verifier, ``"module:function"``.
            text: what the model wrote.
            reference: of the task, plain data.
            seconds: the deadline; starting a worker and importing the verifier is not part of it.

        Raises:
            LoadError: there is no such verifier, or a package that it needs is not installed.
            WorkerError: there is no score; it says why.
        """
        answer = self._with_worker(target, {"text": text, "reference": reference, "seconds": seconds})
        if "error" in answer:
            raise WorkerError(answer["error"])
        return dict(answer["score"])

    def load(self, target: str) -> None:
        """Load a verifier in a worker, to know that it is there.

        Raises:
            LoadError: see `judge`.
        """
        self._with_worker(target, None)

    def close(self) -> None:
        """End all workers; the next job starts new ones."""
        with self._lock:
            workers, self._all, self._idle = self._all, set(), []
        for worker in workers:
            worker.end()

    def _with_worker(self, target: str, job: Mapping[str, Any] | None) -> dict[str, Any]:
        with self._free:
            worker = self._take()
            try:
                self._load(worker, target)
                answer = self._ask(worker, {"target": target, **job}, job["seconds"]) if job is not None else {}
            except LoadError:
                self._give_back(worker)
                raise
            except BaseException:  # a KeyboardInterrupt, too, leaves an answer unread: the worker is lost
                self._end(worker)
                raise
            self._give_back(worker)
        return answer

    def _load(self, worker: _Worker, target: str) -> None:
        if target not in worker.loaded:
            answer = self._ask(worker, {"target": target}, START_SECONDS)
            if "error" in answer:
                raise LoadError(answer["error"])
            worker.loaded.add(target)

    def _ask(self, worker: _Worker, job: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        try:
            return worker.ask(job, seconds)
        except TimeoutError as error:
            raise WorkerError(f"TimeoutError: no verdict after {seconds:g} s") from error
        except OSError as error:
            raise WorkerError(f"the worker died with exit code {self._end(worker)}") from error

    def _take(self) -> _Worker:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            worker = _Worker()
            self._all.add(worker)
            return worker

    def _give_back(self, worker: _Worker) -> None:
        with self._lock:
            self._idle.append(worker)

    def _end(self, worker: _Worker) -> int:
        with self._lock:
            self._all.discard(worker)
        return worker.end()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(self._size)
        self._all = set()
        self._idle = []

    def _leave_to_parent(self) -> None:
        """In a forked child: close the copies of the parent's sockets, and start afresh."""
        workers = self._all
        self._forget()  # the locks may have been held by threads that the child does not have
        for worker in workers:
            worker.socket.close()
            worker.process.returncode = 0  # not a child of this process: nothing to wait for or to warn of


def _environment() -> dict[str, str]:
    """Return the worker's environment: where modules are found, and none of the user's keys."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return {**kept, **threads, "PYTHONPATH": path, "PYTHONHASHSEED": "0"}


WORKERS = WorkerPool()
"""The workers of this process."""
