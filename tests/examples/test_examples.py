"""Each example runs as a script, without a network, and prints a number."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
OURS = ("pangu_modules", "callbacks", "datamodules")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # an example's seed ends with it
    runpy.run_path(str(path), run_name="__main__")
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"\d", last), last
    assert {found.name for found in tmp_path.iterdir()} <= {"runs"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_uses_public_names(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    modules = re.findall(r"^(?:from|import) ([\w.]+)", text, flags=re.MULTILINE)
    assert [name for name in modules if name.partition(".")[0] in OURS and "." in name] == []


def test_every_method_has_one() -> None:
    methods = {"scalenet", "slimllm", "pangu_light", "onebit", "dwm", "moge_upcycling", "distillation"}
    assert methods <= {path.stem for path in EXAMPLES}
