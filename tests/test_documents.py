"""The documents' code blocks run as they stand, and the README stays short."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from pangu_modules import ImageClassifier
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import RUN_DIR_VARIABLE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(document: str, language: str) -> list[str]:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", document, flags=re.DOTALL)
    return found


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


@pytest.mark.parametrize("card", sorted((ROOT / "docs").glob("*.md")), ids=lambda card: card.stem)
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


def test_the_example_of_contributing_trains_and_resumes() -> None:
    (code,) = blocks((ROOT / "CONTRIBUTING.md").read_text(), "python")
    names = run_block(code)
    vit = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}
    module = ImageClassifier.Config(backbone="vit_tiny_patch16_224", model_args=vit, num_classes=3).build()
    images = [{"image": torch.randn(3, 16, 16), "label": torch.tensor(index % 3)} for index in range(4)]
    arguments = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    for _ in range(2):  # the second time it finds its plan
        callback = names["DropBiases"].Config(pull=0.1).build(name="drop")
        Trainer(max_epochs=1, callbacks=[callback], **arguments).fit(module, DataLoader(images, batch_size=2))
    assert [plan.kind for plan in module.config.structure] == ["without_bias"]
    assert set(module.objectives) == {"classification", "drop"}
    assert module.model.head.bias is None
