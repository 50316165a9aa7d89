"""What a worker process does: run one arm, measure its time, check and store its numbers."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import wait
from pathlib import Path

from benchmarks.harness.arms import ArmFunction, ArmInput
from pangu_modules.common.files import write_atomically


def work(
    run: ArmFunction, seed: int, inputs: Mapping[str, ArmInput], folder: Path, log_file: Path, result_file: Path
) -> None:
    """Run one arm and write its numbers to `result_file`; its output, or its traceback, goes to `log_file`."""
    _end_with_parent()
    with log_file.open("w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)  # also what libraries print without Python's sys.stdout
        os.dup2(log.fileno(), 2)
    start, cpu_start = time.perf_counter(), _cpu_seconds()
    values = checked(run(seed, inputs, folder))
    times = {"seconds": time.perf_counter() - start, "cpu_seconds": _cpu_seconds() - cpu_start}
    write_atomically(result_file, json.dumps(values | times, indent=2) + "\n")


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
