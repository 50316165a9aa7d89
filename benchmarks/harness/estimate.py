"""How long what is left of a run will take, from the times in the committed results."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.harness.arms import Method
from benchmarks.harness.running import tasks_of


def remaining_text(methods: Iterable[Method], work_folder: Path | None, results: Path, jobs: int) -> str:
    """Return a sentence on the minutes that the unfinished arms of these methods take.

    Args:
        methods: what will run.
        work_folder: where finished arms are; None if all will run.
        results: folder of earlier result files, which have the CPU time of each arm and seed.
        jobs: arms that run at a time; each has one thread.
    """
    estimates = [_remaining(method, work_folder, results / f"{method.name}.json") for method in methods]
    seconds, unknown = sum(known for known, _ in estimates), sum(count for _, count in estimates)
    others = f", and {unknown} runs that were never timed" if unknown else ""
    return f"about {seconds / jobs / 60:.0f} minutes remain on {jobs} cores{others}"


def _remaining(method: Method, work_folder: Path | None, result_file: Path) -> tuple[float, int]:
    """Return the CPU seconds of a method's unfinished arms, and how many of them have no earlier time."""
    arms: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))["arms"] if result_file.is_file() else {}
    seconds, unknown = 0.0, 0
    for task in tasks_of(method, work_folder or Path()):
        if work_folder and task.folder.result() is not None:
            continue
        earlier = arms.get(task.arm.name, {}).get("results", {})
        if not earlier:
            unknown += 1
            continue
        mean = fmean(numbers["cpu_seconds"] for numbers in earlier.values())
        seconds += earlier.get(str(task.seed), {"cpu_seconds": mean})["cpu_seconds"]
    return seconds, unknown
