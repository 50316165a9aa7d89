"""Finds the benchmark that a name on the command line means: a folder of ``benchmarks/methods`` with the file asked."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pangu_modules.common.names import nearest

METHODS = Path(__file__).parents[1] / "methods"


def names_of(kind: str) -> list[str]:
    """Return the methods that have a benchmark of this kind, ``claims`` or ``speed``, without importing them."""
    return sorted(path.parent.name for path in METHODS.glob(f"*/{kind}.py") if _defines_benchmark(path))


def load(kind: str, name: str) -> Callable[..., Any]:
    """Return the function ``benchmark`` of ``benchmarks/methods/<name>/<kind>.py``.

    Raises:
        ValueError: there is no such benchmark; the message lists those there are.
    """
    names = names_of(kind)
    if name not in names:
        raise ValueError(f"no {kind} of {name!r}.{nearest(name, names)} There are: {', '.join(names)}.")
    benchmark: Callable[..., Any] = importlib.import_module(f"benchmarks.methods.{name}.{kind}").benchmark
    return benchmark


def _defines_benchmark(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return any(isinstance(node, ast.FunctionDef) and node.name == "benchmark" for node in tree.body)
