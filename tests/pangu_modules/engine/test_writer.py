"""One run, one writer: who holds a folder, who takes it over, and how the ranks of a launch agree on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pangu_modules.engine.folder import RUN_DIR_VARIABLE
from pangu_modules.engine.launch import RANKS, announced, announcement, follow, leads, tell
from pangu_modules.engine.writer import OWNER, Writer, claimed


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*RANKS, "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "MASTER_ADDR", RUN_DIR_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def write_owner(folder: Path, writer: Writer) -> None:
    folder.mkdir(exist_ok=True)
    (folder / OWNER).write_text(json.dumps(asdict(writer)))


def ended_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_folder_has_one_writer_and_is_free_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "version_0"
    with claimed(folder):
        refusal = rf"version_0 is being written by process {os.getpid()} on .*: wait"
        with pytest.raises(ValueError, match=refusal), claimed(folder):
            pass
    assert not (folder / OWNER).exists()
    with claimed(folder):
        pass


def test_a_dead_process_is_followed_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_owner(tmp_path, replace(Writer.this(), process=ended_process()))
    with claimed(tmp_path):
        assert Writer.read(tmp_path).process == os.getpid()
    assert "has ended before its run did; this one goes on there" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell when a process began")
def test_a_number_that_was_given_again_is_another_process(tmp_path: Path) -> None:
    write_owner(tmp_path, replace(Writer.this(), begun=1))
    with claimed(tmp_path):
        pass


def test_a_zombie_writes_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read()  # until it has closed its files: it ends, and nobody has waited for it
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not replace(Writer.this(), process=process.pid, begun=0).alive
    process.wait()


def test_another_machine_is_believed(tmp_path: Path) -> None:
    write_owner(tmp_path, replace(Writer.this(), host="elsewhere", process=1))
    refusal = r"process 1 on elsewhere .* if that process is gone, remove .*running.json"
    with pytest.raises(ValueError, match=refusal), claimed(tmp_path):
        pass
    assert Writer.read(tmp_path).host == "elsewhere"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"host": 3}', '{"host": "x", "process": "1"}'])
def test_a_damaged_owner_file_is_no_owner(tmp_path: Path, content: str) -> None:
    (tmp_path / OWNER).write_text(content)
    with claimed(tmp_path):
        pass


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(ValueError, match=r"cannot write .*runs"), claimed(tmp_path / "runs"):
        pass


LAUNCHERS = {
    "torchrun": ({"TORCHELASTIC_RUN_ID": "a", "MASTER_PORT": "1"}, "RANK"),
    "srun": ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, "SLURM_PROCID"),
    "nodes": ({"MASTER_ADDR": "first", "MASTER_PORT": "1"}, "NODE_RANK"),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_all_ranks_follow_the_first(launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment, rank = LAUNCHERS[launcher]
    for name, value in {**environment, rank: "0"}.items():
        monkeypatch.setenv(name, value)
    assert leads()
    file = announcement(tmp_path)
    assert file is not None
    with announced(file, {"folder": "runs/x/version_3"}):
        monkeypatch.delenv(RUN_DIR_VARIABLE)  # torchrun's processes do not inherit from each other
        monkeypatch.setenv(rank, "1")
        assert not leads()
        assert follow(file)["folder"] == "runs/x/version_3"
    assert list(tmp_path.iterdir()) == []


def test_lightnings_own_processes_inherit_the_folder_and_the_next_run_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with announced(None, {"folder": "runs/x/version_3"}):
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert follow(None) == {"folder": "runs/x/version_3"}
    assert RUN_DIR_VARIABLE not in os.environ


def test_what_an_earlier_launch_has_left_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    file = tmp_path / "launch.json"
    for writer, time in ((replace(Writer.this(), process=ended_process()), 4e9), (Writer("elsewhere", 1, 0, ""), 1e9)):
        tell(file, {"folder": "old"})
        file.write_text(json.dumps({**json.loads(file.read_text()), "by": asdict(writer), "time": time}))
        with pytest.raises(ValueError, match=r"\(RANK=1\) follows the first .* start all processes from one folder"):
            follow(file, patience=0.1)
    with pytest.raises(ValueError, match="no launcher that is known"):
        follow(None)


def test_runs_in_a_loop_agree_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    assert announcement(tmp_path) != announcement(tmp_path)
