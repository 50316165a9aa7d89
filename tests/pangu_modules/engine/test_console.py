"""The console script: recipes by name, the nearest name for a typo, and nothing heavy before a recipe is needed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pangu_modules.engine.catalogue import catalogue
from pangu_modules.engine.console import main

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")  # so that main changes nothing for the tests that follow


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_without_a_recipe_it_prints_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(words)
    assert capsys.readouterr().out.startswith("usage: pangu list")


def test_list_names_every_recipe_from_any_folder(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    names = [entry.name for entry in catalogue(ROOT / "recipes")]
    assert {name for name in names if any(line.split()[:1] == [name] for line in lines)} == set(names)


def test_a_recipe_runs_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    main(["scalenet_digits", "plan", "--json"])
    assert json.loads(capsys.readouterr().out)["stages"]["base"]["parameters"] == 604_938


def test_help_and_messages_name_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    main(["scalenet_digits", "--help"])
    printed = capsys.readouterr().out
    assert printed.startswith("usage: pangu scalenet_digits COMMAND [options]\n\nScaleNet on real digits: ")
    with pytest.raises(SystemExit) as stopped:
        main(["scalenet_digits", "plan", "--expand.module.depth_factr", "3"])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert "unknown option --expand.module.depth_factr. Did you mean '--expand.module.depth_factor'?" in printed
    assert "See: pangu scalenet_digits plan --help" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["scalenet_digit", "fit"],
            "unknown recipe 'scalenet_digit'. Did you mean 'scalenet_digits'?\nSee: pangu list",
        ),
        (["lst"], "unknown recipe 'lst'"),
        (["../mine", "fit"], "unknown recipe '../mine'"),
        (["scalenet_digits", "fti"], "unknown command 'fti'. Did you mean 'fit'?"),
        (["scalenet_digits"], "no command given; commands: fit, "),
    ],
)
def test_typos_end_with_code_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_package_of_the_user_that_shadows_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "__init__.py").write_text("")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "pangu_modules.engine.console", "scalenet_deit_b", "plan"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=300)
    assert done.returncode == 2
    assert "recipe scalenet_deit_b: cannot import name 'WeightAverage' from 'callbacks'" in done.stderr
    assert f"Python finds callbacks in {tmp_path / 'callbacks'} before ours: rename it" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_alone_lists_its_targets_and_a_typo_ends_with_code_2() -> None:
    alone = subprocess.run(["make", "-C", str(ROOT)], text=True, capture_output=True, check=True).stdout
    declared = re.findall(r"^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert re.findall(r"^make ([a-z-]+) ", alone, flags=re.MULTILINE) == declared
    words = ["make", "-C", str(ROOT), "-o", ".venv/.installed", "recipe", f"PY={sys.executable}", "NAME=scalenet_digit"]
    typo = subprocess.run(words, text=True, capture_output=True)
    assert typo.returncode == 2
    assert "Did you mean 'scalenet_digits'?" in typo.stderr
