"""Writes the generated parts of the README: the tables of results and the list of recipes.

``python -m benchmarks.pages.tables`` rewrites what stands between the markers, ``--check``
only says whether it is current.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.code import label
from benchmarks.harness.output import measured_text
from pangu_modules.common.files import write_atomically
from pangu_modules.engine.catalogue import catalogue
from pangu_modules.report.markdown import markdown_table
from pangu_modules.report.tables import table_of

CODE = (
    "`code` is a short hash of the code that was measured, unknown where that was not recorded yet; `make lint` lists "
    "the results whose code has changed since."
)
WHAT = {"claims": "claims", "speed": "races"}


def results_section(folder: Path) -> str:
    """Return an overview of all claims and one of all races whose result files lie in `folder`."""
    claims = [_claims_row(_read(path)) for path in sorted((folder / "claims").glob("*.json"))]
    speeds = [_speed_row(_read(path)) for path in sorted((folder / "speed").glob("*.json"))]
    parts = []
    for kind, rows in (("claims", claims), ("speed", speeds)):
        if rows:
            files = (path.stem for path in sorted((folder / kind).glob("*.json")))
            links = ", ".join(f"[{name}](benchmarks/results/{kind}/{name}.md)" for name in files)
            parts += [markdown_table(table_of(rows)), f"All {WHAT[kind]}, with arms and raw numbers: {links}."]
    if not parts:
        return "No results yet."
    return "\n\n".join([*parts, CODE])


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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages.tables", description=__doc__, allow_abbrev=False)
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
        print(f"{options.readme} is out of date: run python -m benchmarks.pages.tables", file=sys.stderr)
        return 1
    write_atomically(options.readme, after)
    return 0


def _read(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def _claims_row(result: dict[str, Any]) -> dict[str, str | None]:
    """Return a method's row: its first claim as an example, how many hold, and each that does not."""
    claims = result["claims"]
    first = claims[0]
    others = [claim for claim in claims if claim["verdict"] != "holds"]
    return {
        "method": f"{result['title']} ({result['source']})",
        "e.g.": f"{first['statement']}: {measured_text(first)}",
        "claims that hold": f"{len(claims) - len(others)} of {len(claims)}",
        "the others": "; ".join(f"{each['statement']}: {measured_text(each)} ({each['verdict']})" for each in others)
        or None,
        "code": label(result),
        "again with": f"make claims NAME={result['method']}",
    }


def _speed_row(result: dict[str, Any]) -> dict[str, str | None]:
    """Return a benchmark's row: how many targets are met, and each that is not."""
    aimed = [entry for entry in result["ratios"] if entry["target"] is not None]
    missed = [entry for entry in aimed if not entry["met"]]
    return {
        "race": result["title"],
        "targets met": f"{len(aimed) - len(missed)} of {len(aimed)}",
        "missed (ratio peer / ours)": "; ".join(
            f"{entry['title']}: {entry['ratio']:.2f}, target {entry['target']:.2f}" for entry in missed
        )
        or None,
        "code": label(result),
        "again with": f"make speed NAME={result['method']}",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
