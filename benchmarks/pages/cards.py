"""Writes the generated tables of the method cards in docs/: configurations, claims and speed.

A card marks their places: ``<!-- config MODULE.CLASS:begin -->`` ... ``<!-- config MODULE.CLASS:end -->``, and in the
same way ``claims NAME`` and ``speed NAME``. ``python -m benchmarks.pages.cards`` rewrites them, ``--check`` only tells
whether they are current.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from benchmarks.harness.code import label
from benchmarks.harness.output import claims_table
from benchmarks.pages.tables import replace_sections
from benchmarks.pages.words import field_types
from benchmarks.races.output import ratios_table
from pangu_modules.common.files import write_atomically
from pangu_modules.report.markdown import markdown_table
from pangu_modules.report.tables import table_of

MARKER = re.compile(r"<!-- ((config|claims|speed) ([\w.]+)):begin -->")
NOT_MEASURED = "Not measured yet."


def config_table(path: str) -> str:
    """Return the fields of a configuration class, given as ``package.module.Class`` or ``...Class.Config``."""
    config = resolve(path)
    types = field_types(config)
    rows = [
        {
            "field": name,
            "type": types[name],
            "default": default_text(field),
            "meaning": field.description,
        }
        for name, field in config.model_fields.items()
    ]
    return markdown_table(table_of(rows))


def resolve(path: str) -> type[BaseModel]:
    """Return the class that a dotted path names.

    Raises:
        ValueError: there is no such configuration class.
    """
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            found = getattr(found, name, None)
        if isinstance(found, type) and issubclass(found, BaseModel):
            return found
    raise ValueError(f"no configuration class {path!r}; write it as package.module.Class")


def default_text(field: FieldInfo) -> str:
    """Return a field's default, or "required"."""
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    return f"{type(default).__qualname__}()" if isinstance(default, BaseModel) else repr(default)


def section(kind: str, name: str, results: Path) -> str:
    """Return the content of one marked place."""
    if kind == "config":
        return config_table(name)
    path = results / kind / f"{name}.json"
    if not path.is_file():
        return NOT_MEASURED
    result = json.loads(path.read_text(encoding="utf-8"))
    table = markdown_table(table_of(*(claims_table if kind == "claims" else ratios_table)(result)))
    return f"{table}\n\nCode that was measured: {label(result)}."


def main(arguments: list[str]) -> int:
    """Rewrite or check the cards; return 0, 1 if a check finds one out of date, 2 for a wrong marker."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages.cards", description=__doc__, allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with code 1 if a card is old")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the cards")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    options = parser.parse_args(arguments)
    old = []
    for card in sorted(options.docs.glob("*.md")):
        before = card.read_text(encoding="utf-8")
        try:
            parts = {found[1]: section(found[2], found[3], options.results) for found in MARKER.finditer(before)}
            after = replace_sections(before, parts)
        except ValueError as error:
            parser.error(f"{card}: {error}")
        if after != before:
            old.append(str(card))
            if not options.check:
                write_atomically(card, after)
    if options.check and old:
        print(f"out of date: {', '.join(old)}; run python -m benchmarks.pages.cards", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
