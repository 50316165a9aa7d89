"""Writes the generated parts of the README: the tables of results and the list of recipes.

``python -m benchmarks.tables`` rewrites what stands between the markers, ``--check`` only tells whether it is current.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.claims.output import claims_table
from benchmarks.speed.output import ratios_table
from pangu_modules.catalogue import catalogue
from pangu_modules.files import write_atomically
from pangu_modules.report_markdown import escape, markdown_table
from pangu_modules.report_tables import table_of


def results_section(folder: Path) -> str:
    """Return the tables of all claims and all races whose result files lie in `folder`."""
    claims = [_read(path) for path in sorted((folder / "claims").glob("*.json"))]
    speeds = [_read(path) for path in sorted((folder / "speed").glob("*.json"))]
    parts = [_claims_part(result) for result in claims] + [_speed_part(result) for result in speeds]
    return "\n\n".join(parts) if parts else "No results yet."


def recipes_section(folder: Path) -> str:
    """Return the table of recipes: name, description, cost."""
    rows = [
        {"recipe": entry.name, "what it does": entry.description, "cost": entry.cost} for entry in catalogue(folder)
    ]
    return markdown_table(table_of(rows)) if rows else "No recipes yet."


def replace_sections(text: str, sections: Mapping[str, str]) -> str:
    """Return `text` with the part between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->`` replaced for each name.

    Raises:
        ValueError: a pair of markers is missing, repeated or in the wrong order.
    """
    for name, content in sections.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise ValueError(f"expected one {begin} and after it one {end}; put both where the {name} belong")
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n{content}\n{end}{rest.partition(end)[2]}"
    return text


def main(arguments: list[str]) -> int:
    """Rewrite or check the README; return 0, 1 if a check finds it out of date, 2 where markers are missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__, allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with code 1 if the README is old")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="file that holds the markers")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--recipes", type=Path, default=Path("recipes"), help="folder of the recipes")
    options = parser.parse_args(arguments)
    try:
        sections = {"results": results_section(options.results), "recipes": recipes_section(options.recipes)}
        before = options.readme.read_text(encoding="utf-8")
        after = replace_sections(before, sections)
    except (OSError, ValueError) as error:
        parser.error(f"{options.readme}: {error}")
    if after == before:
        return 0
    if options.check:
        print(f"{options.readme} is out of date: run python -m benchmarks.tables", file=sys.stderr)
        return 1
    write_atomically(options.readme, after)
    return 0


def _read(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def _claims_part(result: dict[str, Any]) -> str:
    name = result["method"]
    more = (
        f"[Details, arms and raw numbers](benchmarks/results/claims/{name}.md); again with `make claims NAME={name}`."
    )
    table = markdown_table(table_of(*claims_table(result)))
    return f"**{escape(result['title'])}** ({escape(result['source'])})\n\n{table}\n\n{more}"


def _speed_part(result: dict[str, Any]) -> str:
    name = result["method"]
    more = f"[Details](benchmarks/results/speed/{name}.md); again with `make speed NAME={name}`."
    table = markdown_table(table_of(*ratios_table(result)))
    return f"**{escape(result['title'])}** (ratio peer / ours: above 1 ours is better)\n\n{table}\n\n{more}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
