"""Imports point one way: recipes -> callbacks -> pangu_modules, datamodules -> pangu_modules."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "pangu_modules": {"pangu_modules"},
    "datamodules": {"datamodules", "pangu_modules"},
    "callbacks": {"callbacks", "pangu_modules"},
    "recipes": {"recipes", "callbacks", "datamodules", "pangu_modules"},
}


def imported_packages(path: Path) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            packages.add(node.module.partition(".")[0])
    return packages


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        wrong = (imported_packages(path) & set(ALLOWED)) - ALLOWED[package]
        assert not wrong, name
