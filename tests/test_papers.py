"""docs/papers.md: each field that it names exists in its recipe and has the value written there."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "papers.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (.+?), arXiv:\S+\n\nRecipe `(\w+)`(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
ROWS = [
    (recipe, path, value)
    for _, recipe, text in SECTIONS
    for path, value in re.findall(r"\| `([\w.]+)` \| `(.+?)` \|$", text, flags=re.MULTILINE)
]


def value_at(recipe: Any, path: str) -> Any:
    """Return the value of a dotted path in the recipe's first stage; `model` is PanguProMoE's configuration."""
    first, *names = path.split(".")
    if first == "model":
        found: Any = importlib.import_module("pangu_modules").PanguProMoEConfig()
    else:
        found = getattr(next(iter(recipe.stages.values())), first)
    for name in names:
        found = found[name] if isinstance(found, Mapping) else getattr(found, name)
    return found


@pytest.mark.parametrize(("recipe", "path", "value"), ROWS, ids=lambda part: part)
def test_the_field_has_the_value(recipe: str, path: str, value: str) -> None:
    assert value_at(importlib.import_module(f"recipes.{recipe}").recipe, path) == ast.literal_eval(value)


def test_no_row_is_overlooked() -> None:
    rows = [
        line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| the paper", "| ---"))
    ]
    assert len(rows) == len(ROWS) >= 40
    assert len(SECTIONS) == 6
