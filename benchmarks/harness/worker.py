"""What a worker process does: run one arm, measure its time, check and store its numbers."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from benchmarks.harness.arms import ArmFunction, ArmInput
from benchmarks.harness.code import Codes, code_of_process
from pangu_modules.common.files import write_atomically


@dataclass(frozen=True)
class ArmFolder:
    """Where one arm of one seed works, and what it leaves there beside its own files."""

    path: Path

    @property
    def result_file(self) -> Path:
        """The numbers; the presence of this file marks the arm as finished."""
        return self.path / "result.json"

    @property
    def code_file(self) -> Path:
        """The code that the arm ran, written before the numbers."""
        return self.path / "code.json"

    @property
    def log_file(self) -> Path:
        """What the arm printed, or the traceback it ended with."""
        return self.path / "log.txt"

    def result(self) -> dict[str, float] | None:
        """Return the numbers of a finished arm, with ``seconds`` and ``cpu_seconds``, or None."""
        if not self.result_file.is_file():
            return None
        values: dict[str, float] = json.loads(self.result_file.read_text(encoding="utf-8"))
        return values

    def codes(self) -> Codes | None:
        """Return the code that a finished arm ran, or None where that is not known."""
        if not self.code_file.is_file():
            return None
        codes: Codes = json.loads(self.code_file.read_text(encoding="utf-8"))
        return codes

    def write(self, values: Mapping[str, float], codes: Codes | None) -> None:
        """Leave the numbers, and the code if it is known."""
        if codes is not None:
            write_atomically(self.code_file, json.dumps(codes, indent=1) + "\n")
        write_atomically(self.result_file, json.dumps(values, indent=2) + "\n")


@dataclass(frozen=True)
class Job:
    """What a worker process is given: the arm's function and its arguments."""

    run: ArmFunction
    seed: int
    inputs: Mapping[str, ArmInput]
    folder: ArmFolder


def work(job: Job) -> None:
    """Run one arm and leave its numbers and its code; its output, or its traceback, goes to the log."""
    _end_with_parent()
    with job.folder.log_file.open("w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)  # also what libraries print without Python's sys.stdout
        os.dup2(log.fileno(), 2)
    start, cpu_start = time.perf_counter(), _cpu_seconds()
    values = checked(job.run(job.seed, job.inputs, job.folder.path))
    times = {"seconds": time.perf_counter() - start, "cpu_seconds": _cpu_seconds() - cpu_start}
    job.folder.write(values | times, code_of_process())


def checked(values: Mapping[str, object]) -> dict[str, float]:
    """Return an arm's numbers.

    Raises:
        ValueError: one is not a finite number, so that no statistics can be made of it.
    """
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(
                f"the arm returned {name}={value!r}: give finite int or float values "
                "(for a diverged run, the metrics of a constant prediction)"
            )
        numbers[name] = value
    return numbers


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of its ended children (loader workers), in seconds."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _end_with_parent() -> None:
    """End this process when the harness dies, so that a second run never meets workers of the first."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
