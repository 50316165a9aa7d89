"""Arms run in worker processes: inputs, threads, what is kept, failures, kills."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import toy_arms
from toy_method import NOISE, method

from benchmarks.harness.arms import Arm
from benchmarks.harness.running import ArmsFailedError, fingerprint, run_arms, tasks_of

REPOSITORY = Path(__file__).parents[3]


def test_arms_run_with_their_inputs_and_one_thread(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    lines = []
    by_seed = run_arms(method(seeds=2), tmp_path, jobs=3, report=lines.append)
    assert sorted(by_seed) == [0, 1]
    assert sorted(by_seed[0]) == ["base", "better", "extra"]
    assert sorted(by_seed[1]) == ["base", "better"]
    assert by_seed[1]["better"]["accuracy"] == 0.9 + NOISE[1] + 0.02
    assert by_seed[1]["better"]["size"] == 107
    assert by_seed[0]["base"]["threads"] == 1
    assert by_seed[0]["base"]["cpu_seconds"] >= 0
    assert len(lines) == 5
    assert lines[-1].startswith("[5/5] ")
    assert os.environ["OMP_NUM_THREADS"] == "2"  # only the workers have one thread
    logs = list(tmp_path.glob("toy/base/seed0-*/log.txt"))
    assert [log.read_text() for log in logs] == ["training\n"]


def test_finished_arms_are_not_run_again_and_changed_ones_are(tmp_path):
    first = method(seeds=1)
    run_arms(first, tmp_path, jobs=2, report=lambda line: None)
    for task in tasks_of(first, tmp_path):  # a mark that a second run would not write
        task.folder.write({**task.folder.result(), "mark": 1}, None)
    lines = []
    again = run_arms(first, tmp_path, jobs=2, report=lines.append)
    assert lines == ["3 of 3 results are there already"]
    assert all(values["mark"] == 1 for values in again[0].values())

    arms = tuple(replace(arm, config={"rank": 16}) if arm.name == "better" else arm for arm in first.arms)
    changed = run_arms(replace(first, arms=arms), tmp_path, jobs=2, report=lambda line: None)
    assert [name for name, values in changed[0].items() if "mark" not in values] == ["better"]

    fresh = run_arms(first, tmp_path, jobs=2, fresh=True, report=lambda line: None)
    assert not any("mark" in values for values in fresh[0].values())


def test_a_change_of_a_needed_arm_makes_its_dependents_stale():
    first = method()
    arms = tuple(replace(arm, config={"width": 32}) if arm.name == "base" else arm for arm in first.arms)
    second = replace(first, arms=arms)
    assert fingerprint(first, first.arm("better")) != fingerprint(second, second.arm("better"))
    assert fingerprint(first, first.arm("extra")) == fingerprint(second, second.arm("extra"))


def test_a_failure_is_reported_with_its_log_after_all_others_have_run(tmp_path):
    first = method()
    needing = Arm("needing", "needs the failing one", toy_arms.base_arm, needs=("failing",))
    arms = (Arm("failing", "fails", toy_arms.failing_arm), needing, *first.arms)
    with pytest.raises(ArmsFailedError, match="needing, seed 1: needs failing, which failed") as error:
        run_arms(replace(first, arms=arms, seeds=2), tmp_path, jobs=2, report=lambda line: None)
    (log,) = tmp_path.glob("toy/failing/seed1-*/log.txt")
    assert f"failing, seed 1: see {log}" in str(error.value)
    assert "RuntimeError: out of luck" in log.read_text()
    assert len(list(tmp_path.glob("toy/*/*/result.json"))) == 7  # 9 tasks, two of them not finished


PROGRAM = """
import signal, sys, time
from pathlib import Path
from benchmarks.harness.arms import Arm, Method
from benchmarks.harness.running import run_arms

def quick(seed, inputs, folder):
    return {"x": seed}

def slow(seed, inputs, folder):
    mark = folder.parents[2] / "started"
    again = mark.exists()
    mark.touch()
    while not again:
        time.sleep(0.02)
    return {"x": -seed}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    arms = (Arm("quick", "", quick), Arm("slow", "", slow, needs=("quick",)))
    toy = Method("toy", "", "", "", arms, (), (), (), seeds=1)
    run_arms(toy, Path(sys.argv[1]), jobs=1, report=lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_ends_its_workers_and_continues(tmp_path, kill):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command_line = [sys.executable, str(program), str(tmp_path / "work")]
    first = subprocess.Popen(command_line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started = tmp_path / "work" / "started"
    while not started.exists():
        assert first.poll() is None
        time.sleep(0.02)
    (child,) = [int(text) for text in Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()][-1:]
    first.send_signal(kill)
    first.wait()
    while Path(f"/proc/{child}").exists() and "zombie" not in Path(f"/proc/{child}/status").read_text():
        time.sleep(0.02)
    second = subprocess.run(command_line, env=environment, capture_output=True, text=True, check=True)
    assert second.stdout.splitlines()[0] == "1 of 2 results are there already"
    assert second.stdout.splitlines()[1].startswith("[2/2] slow, seed 0: x 0")
