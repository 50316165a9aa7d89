"""The list of recipes: name, description and cost, read from their source so that nothing is imported.

``python -m pangu_modules.engine.catalogue [FOLDER]`` prints it as a table.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import NamedTuple

UNSTATED = "not stated"


class Entry(NamedTuple):
    """One recipe: the name that ``make recipe NAME=`` takes, its first docstring line, its cost."""

    name: str
    description: str
    cost: str


def catalogue(folder: str | Path = "recipes") -> list[Entry]:
    """Return the recipes in `folder`, sorted by name; a file without a top-level ``recipe = ...`` is none.

    The cost is the `cost=` keyword of that assignment; a recipe derived from another file's without one has its
    base's cost, as in `Recipe.derive`. What a recipe leaves out reads "not stated".

    Raises:
        ValueError: there is no such folder.
        SyntaxError: a file is not Python.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no folder {str(folder)!r} to list recipes from: run in the repository's root, or name one")
    entries = []
    for path in sorted(folder.glob("*.py")):
        tree = _parse(path)
        call = _recipe_call(tree)
        if call is not None:
            description = (ast.get_docstring(tree) or UNSTATED).splitlines()[0]
            entries.append(Entry(path.stem, description, _cost(call, tree, path) or UNSTATED))
    return entries


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _recipe_call(tree: ast.Module) -> ast.Call | None:
    """Return the call in ``recipe = Recipe(...)`` or ``recipe = base.derive(...)`` at the top level of a file."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if "recipe" in names:
                return node.value
    return None


def _cost(call: ast.Call, tree: ast.Module, path: Path) -> str:
    """Return the call's `cost=`, else the cost of the recipe file it derives from, else an empty string."""
    for keyword in call.keywords:
        if keyword.arg == "cost" and isinstance(keyword.value, ast.Constant):
            return str(keyword.value.value)
    base = _base_file(call, tree, path.parent)
    if base is None or base == path or not base.is_file():
        return ""
    base_tree = _parse(base)
    base_call = _recipe_call(base_tree)
    return "" if base_call is None else _cost(base_call, base_tree, base)


def _base_file(call: ast.Call, tree: ast.Module, folder: Path) -> Path | None:
    """Return the file that ``base`` in ``base.derive(...)`` comes from (``from recipes.x import recipe as base``)."""
    function = call.func
    if not (isinstance(function, ast.Attribute) and function.attr == "derive" and isinstance(function.value, ast.Name)):
        return None
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == function.value.id:
                    return folder / f"{node.module.rpartition('.')[2]}.py"
    return None


def main(arguments: list[str]) -> None:
    """Print the recipes of the folder given (default ``recipes``), aligned; exits with code 2 where it cannot."""
    from rich.console import Console
    from rich.table import Table

    try:
        entries = catalogue(*arguments[:1])
    except (ValueError, SyntaxError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it does")
    table.add_column("cost")
    for entry in entries:
        table.add_row(*entry)
    Console(highlight=False, markup=False).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
