"""Finds the benchmark that a name on the command line means: a module with a function ``benchmark``."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pangu_modules.common.names import nearest


def names_in(package: str) -> list[str]:
    """Return the modules of `package` that define ``benchmark`` at their top level, without importing them."""
    spec = importlib.util.find_spec(package)
    folder = Path(str(spec.origin)).parent if spec else Path()
    return sorted(path.stem for path in folder.glob("*.py") if _defines_benchmark(path))


def load(package: str, name: str) -> Callable[..., Any]:
    """Return the function ``benchmark`` of the module `name` in `package`.

    Raises:
        ValueError: there is no such benchmark; the message lists those there are.
    """
    names = names_in(package)
    if name not in names:
        raise ValueError(f"no benchmark {name!r} in {package}.{nearest(name, names)} There are: {', '.join(names)}.")
    benchmark: Callable[..., Any] = importlib.import_module(f"{package}.{name}").benchmark
    return benchmark


def _defines_benchmark(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return any(isinstance(node, ast.FunctionDef) and node.name == "benchmark" for node in tree.body)
