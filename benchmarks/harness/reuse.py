"""Takes results of unchanged arms from an earlier result file, so that a change of one arm does not run all again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.arms import Arm, Method
from benchmarks.harness.running import tasks_of
from pangu_modules.report.run_report import collect_versions


def reuse_results(method: Method, result_file: Path, work_folder: Path) -> list[tuple[str, int]]:
    """Write what the file says of unchanged arms to the work folder, as if they had run there.

    An arm is unchanged if its configuration is, and that of all arms it needs. A result file has numbers alone, so an
    arm whose folder is still needed, by one that has to run, runs too.

    Args:
        method: what is about to run.
        result_file: of an earlier run.
        work_folder: as for `run_arms`.

    Returns:
        Names and seeds of the arms taken over.

    Raises:
        ValueError: there is no such file, or it was made with other versions of the libraries.
    """
    if not result_file.is_file():
        raise ValueError(f"{result_file}: no earlier results to take over; leave out --reuse")
    earlier = json.loads(result_file.read_text(encoding="utf-8"))
    if earlier["versions"] != collect_versions():
        raise ValueError(f"{result_file} was made with other versions of the libraries: leave out --reuse")
    taken = []
    for task in tasks_of(method, work_folder):
        key = (task.arm.name, task.seed)
        if task.folder.result() is None and _settled(method, earlier["arms"], *key):
            arm = earlier["arms"][task.arm.name]
            codes = {code: earlier["code"][code] for code in arm["code"]} if "code" in arm else None
            task.folder.write(arm["results"][str(task.seed)], codes)
            taken.append(key)
    return taken


def _settled(method: Method, arms: Mapping[str, Any], name: str, seed: int) -> bool:
    """Return whether nothing of this arm has to run: it is there, and so is all that needs it."""
    there = str(seed) in arms.get(name, {}).get("results", {}) and _unchanged(method, arms, method.arm(name))
    return there and all(
        _settled(method, arms, other.name, seed)
        for other in method.arms
        if name in other.needs and (other.seeds is None or seed < other.seeds)
    )


def _unchanged(method: Method, arms: Mapping[str, Any], arm: Arm) -> bool:
    same = arm.name in arms and arms[arm.name]["config"] == json.loads(json.dumps(dict(arm.config)))
    return same and all(_unchanged(method, arms, method.arm(name)) for name in arm.needs)
