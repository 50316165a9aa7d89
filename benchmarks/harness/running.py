"""The harness: runs arms x seeds in worker processes and keeps each result, so that a killed run continues.

It knows nothing of recipes: an arm is a function from seed, inputs and folder to plain numbers. Each (arm, seed) has
the folder ``<work>/<method>/<arm>/seed<seed>-<fingerprint>``; the fingerprint covers the configurations of the arm
and of all arms it needs. A folder with ``result.json`` is finished; any other is started again from nothing.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from benchmarks.harness.arms import Arm, ArmInput, Method
from benchmarks.harness.code import Codes
from benchmarks.harness.worker import ArmFolder, Job, work

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Task:
    """One arm with one seed, and the folder that holds its files."""

    arm: Arm
    seed: int
    folder: ArmFolder


Key = tuple[str, int]
"""Name of the arm, seed."""


class ArmsFailedError(RuntimeError):
    """One or more arms did not finish; the message lists them with their log files."""


def fingerprint(method: Method, arm: Arm) -> str:
    """Return a short hash of the configurations of `arm` and of all arms it needs.

    Raises:
        TypeError: a configuration is not plain JSON data.
    """
    needs = {name: fingerprint(method, method.arm(name)) for name in arm.needs}
    text = json.dumps({"config": arm.config, "needs": needs}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def tasks_of(method: Method, work_folder: Path) -> list[Task]:
    """Return all tasks, seed by seed, in the order of the arms."""
    prints = {arm.name: fingerprint(method, arm) for arm in method.arms}
    return [
        Task(arm, seed, ArmFolder(work_folder / method.name / arm.name / f"seed{seed}-{prints[arm.name]}"))
        for seed in range(method.seeds)
        for arm in method.arms
        if arm.seeds is None or seed < arm.seeds
    ]


def run_arms(
    method: Method, work_folder: Path, *, jobs: int, fresh: bool = False, report: Callable[[str], None] = print
) -> dict[int, dict[str, dict[str, float]]]:
    """Run every task that has no result yet, at most `jobs` at a time.

    Args:
        method: what to run.
        work_folder: where results are kept between runs.
        jobs: worker processes; each has one thread.
        fresh: forget earlier results first.
        report: receives one line per finished task.

    Returns:
        Seed -> arm -> numbers.

    Raises:
        ArmsFailedError: an arm raised, was killed, or needs one that did; all others have been run.
    """
    tasks = {(task.arm.name, task.seed): task for task in tasks_of(method, work_folder)}
    if fresh:
        shutil.rmtree(work_folder / method.name, ignore_errors=True)
    results = {key: values for key, task in tasks.items() if (values := task.folder.result()) is not None}
    if results:
        report(f"{len(results)} of {len(tasks)} results are there already")
    failures: dict[tuple[str, int], str] = {}
    pool = _Pool(jobs)
    try:
        while len(results) + len(failures) < len(tasks):
            for key in _startable(tasks, results, failures, pool):
                pool.start(key, tasks[key], _inputs(tasks, results, key))
            for key in pool.finished():
                values = tasks[key].folder.result()
                if values is None:
                    failures[key] = f"{key[0]}, seed {key[1]}: see {tasks[key].folder.log_file}"
                    report(f"failed: {failures[key]}")
                else:
                    results[key] = values
                    report(f"[{len(results)}/{len(tasks)}] {key[0]}, seed {key[1]}: {_brief(values)}")
    finally:
        pool.close()
    if failures:
        raise ArmsFailedError("not all arms finished:\n  " + "\n  ".join(failures.values()))
    by_seed: dict[int, dict[str, dict[str, float]]] = {}
    for (name, seed), values in results.items():
        by_seed.setdefault(seed, {})[name] = values
    return by_seed


def codes_of(method: Method, work_folder: Path) -> dict[Key, Codes]:
    """Return the code that each finished task ran, as far as it is known."""
    known = {(task.arm.name, task.seed): task.folder.codes() for task in tasks_of(method, work_folder)}
    return {key: codes for key, codes in known.items() if codes is not None}


class _Pool:
    """Worker processes, a new one per task: it begins with clean memory, random state and CPU time."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.context = multiprocessing.get_context("spawn")
        self.running: dict[Key, Any] = {}

    @property
    def free(self) -> int:
        """How many more tasks may be started."""
        return self.jobs - len(self.running)

    def start(self, key: Key, task: Task, inputs: Mapping[str, ArmInput]) -> None:
        shutil.rmtree(task.folder.path, ignore_errors=True)
        task.folder.path.mkdir(parents=True)
        process = self.context.Process(target=work, args=(Job(task.arm.run, task.seed, inputs, task.folder),))
        with _environment(ONE_THREAD):  # a spawned process reads them when it loads its libraries
            process.start()
        self.running[key] = process

    def finished(self) -> list[Key]:
        """Wait until at least one task has ended, and return those that have."""
        ended = wait([process.sentinel for process in self.running.values()])
        keys = [key for key, process in self.running.items() if process.sentinel in ended]
        for key in keys:
            self.running.pop(key).join()
        return keys

    def close(self) -> None:
        """End the workers that still run."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.join()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]


def _startable(
    tasks: Mapping[Key, Task], results: Mapping[Key, Any], failures: dict[Key, str], pool: _Pool
) -> list[Key]:
    """Return the tasks to start now; a task that needs a failed one becomes a failure."""
    startable: list[Key] = []
    for key, task in tasks.items():
        if key in results or key in failures or key in pool.running:
            continue
        needs = [(name, task.seed) for name in task.arm.needs]
        broken = [name for name, seed in needs if (name, seed) in failures]
        if broken:
            failures[key] = f"{key[0]}, seed {key[1]}: needs {', '.join(broken)}, which failed"
        elif len(startable) < pool.free and all(need in results for need in needs):
            startable.append(key)
    return startable


def _inputs(tasks: Mapping[Key, Task], results: Mapping[Key, dict[str, float]], key: Key) -> dict[str, ArmInput]:
    seed = key[1]
    return {name: ArmInput(tasks[name, seed].folder.path, results[name, seed]) for name in tasks[key].arm.needs}


def _brief(values: Mapping[str, float]) -> str:
    shown = {name: value for name, value in values.items() if name not in ("seconds", "cpu_seconds")}
    text = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items()
    )
    return f"{text} ({values['seconds']:.0f} s, {values['cpu_seconds']:.0f} CPU s)"
