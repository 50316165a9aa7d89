"""Comparing runs: differing settings, a row per stage, one page; what is no run is refused in a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pangu_modules.engine.compare import differing_settings, main, read_runs, result_rows

CONFIG = {
    "module": {"width": 8, "optimizer": {"lr": 0.1}, "args": {}},
    "data": {"size": 4},
    "callbacks": {"ema": None},
    "seed": 0,
}
RESULT = {"metrics": {"test/accuracy": 0.5, "test/loss": 1.25}, "parameters": 1000, "seconds": 7.0, "epochs": 3}
CURVE = "epoch,step,train/loss,val/loss\n0,1,3.0,\n0,2,2.0,\n0,2,,2.5\n"


def write_run(folder: Path, config: Any = CONFIG, result: Any = RESULT, metrics: str | None = CURVE) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(json.dumps(config))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    if metrics is not None:
        (folder / "metrics.csv").write_text(metrics)


@pytest.fixture(autouse=True)
def two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/a/version_0"))
    other = {**CONFIG, "module": {"width": 9, "optimizer": {"lr": 0.1}, "api_key": "hush"}, "callbacks": {}}
    write_run(Path("runs/a/version_1"), config=other, result={**RESULT, "metrics": {"test/loss": 0.5}})


def test_the_page_has_results_settings_and_curves(capsys: pytest.CaptureFixture[str]) -> None:
    main(["runs/a/version_0", "a/version_1"])
    printed = capsys.readouterr().out
    assert "page  runs/compare_0.html" in printed
    assert max(len(line) for line in printed.splitlines()) <= 80
    page = Path("runs/compare_0.html").read_text()
    for text in ("Comparison of version_0, version_1", "module.width", "50.0", "0.500", "Learning curve: loss"):
        assert text in page, text
    assert "module.optimizer.lr" not in page  # it is the same
    assert "hush" not in page
    assert "hush" not in printed
    main(["runs/a/version_0", "a", "--output", "mine.html"])  # a recipe's name is its newest run
    assert Path("mine.html").is_file()
    main(["runs/a/version_0", "a"])
    assert Path("runs/compare_1.html").is_file()  # nothing is overwritten


def test_only_what_differs_is_listed() -> None:
    rows = differing_settings(read_runs(["a/version_0", "a/version_1"]))
    assert rows == [
        {"setting": "module.width", "version_0": "8", "version_1": "9"},
        {"setting": "module.args", "version_0": "{}", "version_1": "-"},
        {"setting": "callbacks.ema", "version_0": "null", "version_1": "-"},
        {"setting": "module.api_key", "version_0": "-", "version_1": "***"},
        {"setting": "callbacks", "version_0": "-", "version_1": "{}"},
    ]


def test_pipelines_unfinished_runs_and_other_recipes() -> None:
    write_run(Path("runs/b/version_0"), config={"first": CONFIG, "second": CONFIG}, result=None, metrics=None)
    write_run(Path("runs/b/version_0/first"), result=RESULT, metrics="")
    runs = read_runs(["a/version_0", "b"])
    assert [run.label for run in runs] == ["a/version_0", "b/version_0"]
    one, first, second = result_rows(runs)
    assert one == {
        "run": "a/version_0",
        "test/accuracy": 50.0,
        "test/loss": 1.25,
        "parameters": 1000,
        "epochs": 3,
        "seconds": 7.0,
    }
    assert (first["stage"], first["test/loss"]) == ("first", 1.25)
    assert second == {"run": "b/version_0", "stage": "second"}
    main(["a/version_0", "b"])  # an empty metrics.csv has no curves


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a/version_0"], "give two runs or more, got 1"),
        (["a/version_0", "runs"], "runs is no run: it holds no config.yaml; give a folder like"),
        (["a/version_0", "a/version_2"], "no such folder, here or in runs/. Did you mean 'a/version_"),
        (["a/version_0", "runs/a/version_0/"], "is named twice"),
        (["a/version_0", "a/version_1", "--output", "runs/a/version_0/result.json"], "is there already"),
        (["a/version_0", "--out", "x"], "unrecognized arguments: --out"),
    ],
)
def test_what_is_no_run_ends_with_code_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 2
    assert not list(Path("runs").glob("*.html"))


@pytest.mark.parametrize("name", ["config.yaml", "result.json"])
@pytest.mark.parametrize("content", [b"", b"[1", b"\xff\xfe\x00", b"just words", b"{1: 2}"])
def test_damaged_files_are_named(name: str, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (Path("runs/a/version_1") / name).write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        main(["a/version_0", "a/version_1"])
    assert stopped.value.code == 2
    first, _ = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: runs/a/version_1/{name} ")


def test_a_configuration_of_something_else_is_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    for content in ("{a: 3}", "{a: {b: 3}}"):
        (Path("runs/a/version_1") / "config.yaml").write_text(content)
        with pytest.raises(SystemExit):
            main(["a/version_0", "a/version_1"])
        assert "runs/a/version_1 is no run of a recipe: its config.yaml has no module" in capsys.readouterr().err


def test_it_imports_neither_torch_nor_lightning() -> None:
    code = "import sys; from pangu_modules.engine import compare; compare.main(['a/version_0', 'a']);"
    code += "print({'torch', 'lightning', 'jsonargparse'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
