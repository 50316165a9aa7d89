"""The process in which verifiers run: it reads tasks from a socket, one JSON object a line, and answers each.

``python -m pangu_modules.verification.worker FILE_DESCRIPTOR`` is started by `pool`. What a model wrote is only ever
data here; the process is for what such data can do to a parser: never end, take all memory, or bring it down. Limits of
the operating system end it then, also where the process that started it is gone.
"""

from __future__ import annotations

import importlib
import json
import logging
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from typing import Any

MEMORY = 4 << 30  # bytes of address space; sympy and reasoning-gym take less than one
GRACE = 2.0  # seconds after the deadline, in which whoever waits ends the process himself


@cache
def verifier_of(target: str) -> Any:
    """Import and return a verifier, ``"module:function"``; its module's ``prepare()`` imports what it needs."""
    name, _, attribute = target.partition(":")
    module = importlib.import_module(name)
    getattr(module, "prepare", lambda: None)()
    return getattr(module, attribute)


def answer(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return what becomes of a job: an empty answer to loading, a score, or the error that was raised.

    Args:
        job: ``target``, a verifier; to judge with it also ``text``, ``reference`` and ``seconds``.
    """
    try:
        verifier = verifier_of(job["target"])
        if "text" not in job:
            return {}
        signal.setitimer(signal.ITIMER_REAL, job["seconds"] + GRACE)  # its default action ends the process
        try:
            return {"score": asdict(verifier(job["text"], job["reference"]))}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Exception as error:  # whatever it is: it is reported, counted, and no reason to stop
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def main(descriptor: int) -> None:
    """Answer jobs until the other side closes the socket."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > MEMORY:
        with suppress(ValueError, OSError):  # macOS has no such limit
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, hard))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started it, who closes the socket then
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logging.disable(logging.CRITICAL)  # math-verify logs every answer that it cannot read
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rw", encoding="utf-8") as lines:
        for line in lines:
            lines.write(json.dumps(answer(json.loads(line))) + "\n")
            lines.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
