"""The documents' code blocks run as they stand, and the README stays short."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import RUN_DIR_VARIABLE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(document: str, language: str) -> list[str]:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", document, flags=re.DOTALL)
    return found


# Pages of docs/ that are no card of a method.
NO_CARDS = ("ascend", "ascend_migration", "composition", "log", "papers")
SHELL_LINES = "\n".join(blocks(README, "bash")).splitlines()


def run_block(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "block"}
    exec(compile(code, "<document>", "exec", dont_inherit=True), names)
    return names


def test_readme_is_under_250_lines() -> None:
    assert len(README.splitlines()) < 250


@pytest.mark.parametrize("code", blocks(README, "python"))
def test_python_blocks_of_the_readme_run(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_block(code)
    if "print(" in code:
        assert re.search(r"twice the depth for \d+\.\d% more parameters", capsys.readouterr().out)


CARDS = sorted(path for path in (ROOT / "docs").glob("*.md") if path.stem not in NO_CARDS)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_python_blocks_of_the_cards_run(card: Path) -> None:
    code = blocks(card.read_text(), "python")
    assert code, "a card shows how to use its method in one's own project"
    for block in code:
        run_block(block)


@pytest.mark.parametrize("line", [line for line in SHELL_LINES if "recipes/" in line])
def test_command_lines_of_the_readme_run(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    _, script, *words = shlex.split(line)
    monkeypatch.setattr(sys, "argv", [script, *words])
    main(importlib.import_module(f"recipes.{Path(script).stem}").recipe, words)
    assert capsys.readouterr().out


@pytest.mark.parametrize("line", [line for line in SHELL_LINES if "make" in line])
def test_make_targets_of_the_readme_exist(line: str) -> None:
    target = line.split()[1]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
    name = re.search(r"NAME=(\w+)", line)
    assert name is None or (ROOT / "recipes" / f"{name[1]}.py").is_file()
