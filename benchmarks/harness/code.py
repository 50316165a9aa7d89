"""Which project code a measurement ran, as a hash, so that a result is known to be stale when that code has changed.

Counted are the source files of our packages that the measuring process has imported, and C sources beside them. A
Python file counts as its syntax tree without docstrings: comments, docstrings and formatting change nothing. What only
declares, judges or prints does not count: the tables of arms (an arm's configuration is stored beside its numbers and
compared apart), the harness, the report's looks and the list of public names.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("pangu_modules", "callbacks", "datamodules", "recipes", "benchmarks")
RUN_BY_ARMS = ("benchmarks/harness/recipe_arm.py",)
NOT_COUNTED = (
    "benchmarks/claims.py",
    "benchmarks/speed.py",
    "benchmarks/harness/",
    "benchmarks/pages/",
    "benchmarks/races/output.py",
    "pangu_modules/common/registry.py",
    "pangu_modules/report/",
)
TABLES = "claims.py"
LENGTH = 12

Codes = dict[str, list[str]]
"""Hash -> the files it was taken of, relative to the repository: what one or more measurements ran."""


def code_of_process() -> Codes:
    """Return the code that this process has imported so far, under its hash."""
    files = sorted(set(_imported()))
    return {str(hash_of(files)): files}


def hash_of(files: Iterable[str], root: Path = ROOT) -> str | None:
    """Return the hash of these files as they are now, or None if one is gone or no longer Python."""
    digest = hashlib.sha256()
    for file in files:
        try:
            digest.update(f"{file} {_file_hash(root / file)}\n".encode())
        except (OSError, SyntaxError):
            return None
    return digest.hexdigest()[:LENGTH]


def changed(codes: Iterable[str], files: Mapping[str, list[str]], root: Path = ROOT) -> bool:
    """Return whether the code of one of these hashes is another one now."""
    return any(hash_of(files[code], root) != code for code in codes)


def label(result: Mapping[str, Any]) -> str:
    """Return what tables say of the code that a result ran: a short hash of all of it, or "unknown".

    A result is unknown if it, or one of its arms, was measured before the code was recorded. Tables show this and not
    whether the code has changed since: it stays the same until a result is measured again, so that tables which are
    checked in do not become wrong with every change of the code. `benchmarks.pages.stale` says what has changed.
    """
    codes = result.get("code")
    if not codes or any("code" not in arm for arm in result.get("arms", {}).values()):
        return "unknown"
    return hashlib.sha256(" ".join(sorted(codes)).encode()).hexdigest()[:7]


def _imported() -> Iterator[str]:
    """Yield the counted files of the modules that this process has imported."""
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if name.partition(".")[0] not in PACKAGES or path is None or not Path(path).is_relative_to(ROOT):
            continue
        file = Path(path).relative_to(ROOT)
        if _counts(file.as_posix()):
            yield file.as_posix()
            yield from (source.relative_to(ROOT).as_posix() for source in Path(path).parent.glob("*.c"))


def _counts(file: str) -> bool:
    if file in RUN_BY_ARMS:
        return True
    tables = file.startswith("benchmarks/methods/") and file.endswith(f"/{TABLES}")
    return file.endswith(".py") and not tables and not file.startswith(NOT_COUNTED)


@cache
def _file_hash(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".py":
        content = repr(_plain(ast.parse(content))).encode()
    return hashlib.sha256(content).hexdigest()


def _plain(node: Any) -> Any:
    """Return a syntax tree as nested lists without docstrings and without what differs between Python's versions."""
    if isinstance(node, ast.AST):
        fields = [(name, _plain(value)) for name, value in ast.iter_fields(node) if value is not None and value != []]
        return [type(node).__name__, *(pair for pair in fields if pair[0] not in ("ctx", "kind", "type_params"))]
    if isinstance(node, list):
        return [_plain(entry) for entry in node if not _is_text(entry)]
    return node


def _is_text(node: Any) -> bool:
    """Return whether a statement is a string alone: a docstring, or one below an attribute."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
