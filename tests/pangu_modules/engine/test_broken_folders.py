"""Folders and files that are damaged, full, read-only, gone or in use: one sentence, exit code 2, no half of a file."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from kills import KillSwitch, killed
from toy_runs import CONSTANT as RECIPE
from toy_runs import FIRST, STAGED, refusal

from pangu_modules.engine import checkpoint_io
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import versions
from pangu_modules.engine.writer import claimed

LAST = FIRST / "checkpoints/last.ckpt"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["toy.py"])


def test_a_dangling_link_or_a_file_in_place_of_the_runs(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").symlink_to("nowhere")
    assert "runs is a link to nowhere, which does not exist" in refusal(["fit"], capsys)
    Path("runs").unlink()
    Path("runs").write_text("")
    assert "runs is a file: rename it" in refusal(["fit"], capsys)


def test_runs_that_cannot_be_written(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        assert "no folder for the run can be made there (Read-only file system" in refusal(["fit"], capsys)


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "foreign"])
def test_a_damaged_checkpoint_is_named_by_every_command(damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(RECIPE, ["fit"])
    whole = LAST.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    LAST.write_bytes({"empty": b"", "cut": whole[:middle], "flipped": flipped, "foreign": b"GIF89a" * 99}[damage])
    for command in ("fit", "test", "export"):
        message = refusal([command, "--ckpt_path", str(LAST)], capsys)
        assert str(LAST) in message
        assert "is damaged" in message if damage == "flipped" else "is no whole checkpoint" in message
    assert "last.ckpt" in refusal(["fit", "--module.init_checkpoint", str(LAST)], capsys)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"metrics": {}}', '{"seed": "x"}', "\0\0"])
def test_a_damaged_result_is_named(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(STAGED, ["fit"])
    (FIRST / "first/result.json").write_text(content)
    shutil.copy(FIRST / "config.yaml", "config.yaml")
    (FIRST / "second/result.json").unlink()
    message = refusal(["fit"], capsys, STAGED)
    assert message.startswith(f"error: {FIRST}/first/result.json is damaged (")
    assert message.endswith("remove it, and the stage goes on from its last checkpoint")


@pytest.mark.parametrize("content", [b"", b"\0\0\0", b"step,train/loss\n0,1\n1,", b"\xff\xfe\n\xff"])
def test_a_damaged_metrics_file_is_gone_on_with(content: bytes) -> None:
    main(RECIPE, ["fit"])
    (FIRST / "metrics.csv").write_bytes(content)
    main(RECIPE, ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"])
    assert (FIRST / "metrics.csv").read_text().count("\n") > 8
    (FIRST / "metrics.csv").write_bytes(content)
    main(RECIPE, ["fit", "--ckpt_path", "last"])  # no batch left: the report reads what there is


def test_a_full_disk_leaves_nothing_half_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(RECIPE, ["fit"])
    before = LAST.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_io.os, "fsync", full)
        words = ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "4", "--loggers", "[]"]
        with monkeypatch.context() as only_checkpoints:
            only_checkpoints.setattr("pangu_modules.engine.run.write_atomically", lambda path, _: path)
            only_checkpoints.setattr("pangu_modules.engine.commands.write_atomically", lambda path, _: path)
            only_checkpoints.setattr("pangu_modules.engine.writer.write_atomically", _plain_write)
            message = refusal(words, capsys)
    assert message.startswith(
        f"error: {FIRST}: No space left on device; its last checkpoint is whole: free space, then"
    )
    assert LAST.read_bytes() == before
    assert [path.name for path in FIRST.rglob("*") if path.name.endswith((".part", ".new"))] == []
    main(RECIPE, ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "4"])


def _plain_write(path: Path, content: str) -> Path:
    Path(path).write_text(content)
    return Path(path)


def test_a_folder_that_is_removed_meanwhile(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove(_: type, hook: str) -> None:
        if hook == "step":
            shutil.rmtree("runs", ignore_errors=True)

    monkeypatch.setattr(KillSwitch, "pull", classmethod(remove))
    one = STAGED.stage("first")
    message = refusal(["fit"], capsys, one)
    assert "version_0 was removed or renamed while the run wrote there" in message
    assert not Path("runs").exists()


def test_a_second_run_of_a_pipeline_gets_its_own_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with killed(("step", 12)):
        main(STAGED, ["fit"])
    with claimed(FIRST):  # a living process goes on with it
        main(STAGED, ["fit"])
        assert [path.name for path in versions("toy")] == ["version_0", "version_1"]
        assert "this run gets a folder of its own, runs/toy/version_1" in capsys.readouterr().err
        with claimed(Path("runs/toy/version_1")):
            for words in (["--stage", "second"],):
                assert "version_1 is being written by process" in refusal(["fit", *words], capsys, STAGED)


def test_recipes_in_a_loop_have_a_folder_each(tmp_path: Path) -> None:
    for name in ("one.py", "two.py", "one.py"):
        sys.argv = [name]
        main(RECIPE, ["fit"])
    assert [len(versions(name)) for name in ("one", "two")] == [2, 1]
    result = RECIPE.fit(tmp_path / "mine", quiet=True)
    assert json.loads((tmp_path / "mine/result.json").read_text())["seed"] == result.seed
    with claimed(tmp_path / "mine"), pytest.raises(ValueError, match="mine is being written by process"):
        RECIPE.fit(tmp_path / "mine", quiet=True)
