"""Writes docs/composition.md: which callbacks work together, from their `needs` and `provides` and the rules.

``python -m benchmarks.pages.composition`` writes it, ``--check`` only tells whether it is current. The test of ordered
pairs trains or refuses every pair, so that the table is what happens.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.pages.whole_page import write_or_check
from pangu_modules.common import registry
from pangu_modules.report.markdown import markdown_table
from pangu_modules.report.tables import table_of
from pangu_modules.training.callback import RecipeCallback
from pangu_modules.training.composition import RULES, WORDS, conflict

PAGE = Path("docs/composition.md")
INTRODUCTION = """# What composes

Callbacks of one stage are listed in an order, and set up in that order. Each says in words what it needs of training
and provides to it; `pangu_modules/training/composition.py` holds the words and the rules, and refuses in `setup()`
what cannot work, with a message that names both callbacks, the reason and the remedy. A callback of your own takes part
by its class attributes `needs` and `provides`.

This page is written by `make tables`.
"""


def words_by_class() -> dict[str, frozenset[str]]:
    """Return the words of every public callback that has some, as it is by default."""
    found = {}
    for name in registry.names("callbacks"):
        kind = registry.load("callbacks", name)
        if issubclass(kind, RecipeCallback) and (kind.needs | kind.provides):
            found[name] = kind.needs | kind.provides
    return found


def page() -> str:
    """Return the text of the page."""
    words = words_by_class()
    rows = []
    for first in words:
        row: dict[str, str] = {"listed first": first}
        for second in words:
            found = conflict(words[first], words[second])
            row[second] = "yes" if found is None else str(1 + RULES.index(found[0]))
        rows.append(row)
    reasons = [
        {"rule": str(number), "between": f"{rule.first} / {rule.second}", "why": rule.why}
        for number, rule in enumerate(RULES, start=1)
    ]
    meanings = [
        {"word": word, "a callback with it": meaning, "callbacks": ", ".join(n for n in words if word in words[n])}
        for word, meaning in WORDS.items()
    ]
    ordered = ", ".join(str(number) for number, rule in enumerate(RULES, start=1) if rule.ordered)
    return "\n".join(
        (
            INTRODUCTION,
            "## Ordered pairs",
            "",
            "The row's callback is listed before the column's; a number is the rule that refuses the pair. A callback",
            "on the diagonal is a second one of its class. Callbacks that are missing go with all.",
            "",
            markdown_table(table_of(rows)),
            "",
            "## Rules",
            "",
            markdown_table(table_of(reasons)),
            "",
            f"Rules {ordered} hold in this order alone.",
            "",
            "## Words",
            "",
            markdown_table(table_of(meanings)),
            "",
            "By their configuration, pruning with `lora` also provides adapters, `PanguLightPruning` with",
            "`method.absorb.enabled` absorbed norms; `Distillation` from another teacher than `self` needs nothing.",
            "",
        )
    )


def main(arguments: list[str]) -> int:
    """Write or check the page; return 0, or 1 if a check finds it out of date."""
    return write_or_check("python -m benchmarks.pages.composition", __doc__, PAGE, page, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
