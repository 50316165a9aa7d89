"""Servers that are programs of others, each in a process of its own, started by our own command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]


@contextmanager
def serving(engine: str, folder: Path, log: Path, *options: str, seconds: float = 600) -> Iterator[str]:
    """Serve a folder on a free port; yields the address when the server is up, and ends it afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    module = "pangu_modules.llm.generation.server.serving"
    command = [sys.executable, "-m", module, engine, str(folder), "--port", str(port), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with log.open("wb") as out:
        # A session of its own: vLLM starts processes, and all of them have to end.
        process = subprocess.Popen(
            command, cwd=log.parent, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + seconds
        while not _is_up(port):
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_up(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
