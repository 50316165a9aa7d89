"""Writes the stub files of the public packages from the registry, so that each public name is written by hand once.

``python -m benchmarks.pages.stubs`` rewrites ``pangu_modules/__init__.pyi`` and its like; ``--check`` only says whether
they are current. Type checkers and editors read them; Python reads the registry.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pangu_modules.common.files import write_atomically
from pangu_modules.common.registry import TARGETS

PACKAGES = ("pangu_modules", "callbacks", "datamodules")


def stub(package: str) -> str:
    """Return the text of a package's stub: one import a public name."""
    targets = sorted(tuple(target.split(":")) for target in TARGETS[package].values())
    lines = [f"from {module} import {name} as {name}" for module, name in targets]
    return "# Written from pangu_modules/common/registry.py by `make tables`.\n" + "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Rewrite or check the stubs; return 0, or 1 if a check finds one out of date."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages.stubs", description=__doc__, allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with code 1 if a stub is old")
    parser.add_argument("--root", type=Path, default=Path(), help="folder that holds the packages")
    options = parser.parse_args(arguments)
    old = []
    for package in PACKAGES:
        path = options.root / package / "__init__.pyi"
        if not path.is_file() or path.read_text(encoding="utf-8") != stub(package):
            old.append(str(path))
            if not options.check:
                write_atomically(path, stub(package))
    if options.check and old:
        print(f"out of date: {', '.join(old)}; run python -m benchmarks.pages.stubs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
