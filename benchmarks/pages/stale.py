"""``python -m benchmarks.pages.stale``: say which results in benchmarks/results ran other code than today's.

This only informs, and its exit code is 0: measuring everything again takes hours, and most changes alter no number. The
README and the cards do not carry the mark, because it would turn with every commit; they name the code that was
measured (see `benchmarks.harness.code.label`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness.code import ROOT, changed, label

SHOWN = 5


def stale_lines(results: Path, root: Path = ROOT) -> Iterator[str]:
    """Yield a line for each result file whose code is unknown or has changed.

    Args:
        results: folder that holds ``claims`` and ``speed``.
        root: of the repository, in which the code is looked up.
    """
    for kind in ("claims", "speed"):
        for path in sorted((results / kind).glob("*.json")):
            text = state(json.loads(path.read_text(encoding="utf-8")), root)
            if text:
                yield f"{kind}/{path.stem}: {text}"


def state(result: dict[str, Any], root: Path = ROOT) -> str:
    """Return what is to say of a result's code: that it is unknown, or stale and where; empty where it is current."""
    if "arms" not in result:
        if label(result) == "unknown":
            return "code unknown"
        return "stale" if changed(result["code"], result["code"], root) else ""
    arms: dict[str, Any] = result["arms"]
    unknown = [name for name, arm in arms.items() if "code" not in arm]
    stale = [name for name, arm in arms.items() if changed(arm.get("code", []), result.get("code", {}), root)]
    if len(unknown) == len(arms):
        return "code unknown"
    parts = [f"{len(stale)} of {len(arms)} arms are stale ({_some(stale)})"] if stale else []
    if unknown:
        parts.append(f"code of {len(unknown)} of {len(arms)} arms unknown")
    return "; ".join(parts)


def main(arguments: list[str]) -> int:
    """Print the lines; return 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages.stale", description=__doc__, allow_abbrev=False)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    options = parser.parse_args(arguments)
    for line in stale_lines(options.results):
        print(line)
    return 0


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
