"""The console script ``pangu``: the recipes of the installed package, by name and from any folder.

``pangu list`` and the bare help come from the recipes' source text; what else is asked imports the recipe.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from pangu_modules.common.errors import UsageError
from pangu_modules.common.names import nearest
from pangu_modules.common.threads import spin_briefly
from pangu_modules.engine import catalogue
from pangu_modules.engine.cli import answer
from pangu_modules.engine.recipe import Recipe
from pangu_modules.engine.request import HELP, Program

USAGE = """usage: pangu list                       every recipe with its description and cost
       pangu compare RUN RUN            results, settings and curves of runs as one HTML page
       pangu completion bash|zsh        a script that completes names, commands and options
       pangu NAME COMMAND [options]     run a recipe, e.g. pangu scalenet_digits fit
       pangu NAME --help                the commands of a recipe
       pangu NAME fit --help            every option with its default"""
HOME = Path(__file__).resolve().parents[2]  # the folder that our packages lie in, of a repository or a wheel


def main(arguments: list[str] | None = None) -> None:
    """Answer a command line; exits with code 2 and a short message on a bad value.

    Args:
        arguments: the words after ``pangu``; by default those that this process was started with.
    """
    spin_briefly()  # before a recipe loads torch
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in HELP:
        print(USAGE)
        return
    if words == ["list"]:
        catalogue.main([str(HOME / "recipes")])
        return
    if words[0] == "compare":
        from pangu_modules.engine import compare

        compare.main(words[1:])
        return
    if words[0] == "completion":
        from pangu_modules.engine import completion

        completion.main(words[1:], recipe_options)
        return
    name, *rest = words
    try:
        program = program_of(name)
    except UsageError as error:
        print(f"error: {error}\nSee: pangu list", file=sys.stderr)
        raise SystemExit(2) from None
    answer(lambda: load_recipe(name), rest, program)


def program_of(name: str) -> Program:
    """Return how messages speak of a recipe.

    Raises:
        UsageError: there is no such recipe.
    """
    entries = {entry.name: entry for entry in catalogue.catalogue(HOME / "recipes")}
    if name not in entries:
        raise UsageError(f"unknown recipe {name!r}.{nearest(name, [*entries, 'list', 'compare', 'completion'])}")
    return Program(name=name, call=f"pangu {name}", title=entries[name].description)


def load_recipe(name: str) -> Recipe:
    """Import a recipe.

    Raises:
        UsageError: it imports a package that is not installed, or one of the user's own under one of our names.
    """
    try:
        recipe: Recipe = importlib.import_module(f"recipes.{name}").recipe
    except ImportError as error:
        raise UsageError(f"recipe {name}: {error}.{shadowing()}") from error
    return recipe


def recipe_options() -> dict[str, list[str]]:
    """Return the options of every recipe's configuration, by its name; what cannot be imported is named."""
    from pangu_modules.engine.completion import configuration_options

    options = {}
    for entry in catalogue.catalogue(HOME / "recipes"):
        try:
            options[entry.name] = configuration_options(load_recipe(entry.name), program_of(entry.name))
        except UsageError as error:  # a package of its own is not installed: it cannot be run here
            print(f"left out: {error}", file=sys.stderr)
    return options


def shadowing() -> str:
    """Name the packages of a project of the user's that Python finds in place of ours; empty if there are none."""
    others = []
    for package in ("callbacks", "datamodules", "recipes"):
        spec = importlib.util.find_spec(package)
        places = [] if spec is None else list(spec.submodule_search_locations or [])
        if places and Path(places[0]).resolve() != HOME / package:
            others.append(f"{package} in {places[0]}")
    if not others:
        return ""
    found = ", ".join(others)
    return f" Python finds {found} before ours: rename it, or start from a folder that does not hold it."


if __name__ == "__main__":
    main()
