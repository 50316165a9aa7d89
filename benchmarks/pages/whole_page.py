"""The command of a page of docs/ that is written as a whole: write it, or tell whether it is current."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from pangu_modules.common.files import write_atomically


def write_or_check(program: str, description: str | None, path: Path, page: Callable[[], str], words: list[str]) -> int:
    """Write or check a page; return 0, or 1 if a check finds it out of date.

    Args:
        program: what a user types, e.g. ``python -m benchmarks.pages.composition``.
        description: for its help.
        path: the file.
        page: makes its content.
        words: of the command line.
    """
    parser = argparse.ArgumentParser(prog=program, description=description, allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with code 1 if the page is old")
    options = parser.parse_args(words)
    current = page()
    if path.is_file() and path.read_text(encoding="utf-8") == current:
        return 0
    if options.check:
        print(f"out of date: {path}; run {program}", file=sys.stderr)
        return 1
    write_atomically(path, current)
    return 0
