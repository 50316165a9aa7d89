"""The result of a speed benchmark as a file and as tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.harness.code import code_of_process, label
from benchmarks.races.race import Benchmark
from pangu_modules.common.files import write_atomically
from pangu_modules.report.markdown import escape, markdown_table
from pangu_modules.report.run_report import collect_versions
from pangu_modules.report.tables import format_float, table_of

Result = dict[str, Any]


def result_of(name: str, benchmark: Benchmark, ratios: list[dict[str, Any]], seconds: float) -> Result:
    """Return the content of the result file; the code is what this process has imported by now."""
    return {
        "method": name,
        "title": benchmark.title,
        "setup": benchmark.setup,
        "ratios": ratios,
        "seconds": seconds,
        "code": code_of_process(),
        "versions": collect_versions(),
    }


def write_results(result: Result, folder: Path) -> list[Path]:
    """Write ``<name>.json`` and ``<name>.md`` to `folder`, each atomically, and return their paths."""
    name = result["method"]
    return [
        write_atomically(folder / f"{name}.json", json.dumps(result, indent=2, allow_nan=False) + "\n"),
        write_atomically(folder / f"{name}.md", render(result)),
    ]


def ratios_table(result: Result) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Return rows and columns of the table of ratios, as `table_of` takes them."""
    columns = {
        "title": "what",
        "ours": "ours",
        "peer": "peer",
        "ratio": "ratio (quartiles)",
        "target": "target",
        "met": "met",
    }
    return [_row(entry) for entry in result["ratios"]], columns


def render(result: Result) -> str:
    """Return the Markdown form of a result."""
    name = result["method"]
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    checks = "; ".join(
        f"{entry['id']} {entry['error']:.2g} (at most {entry['bound']:.2g})" for entry in result["ratios"]
    )
    parts = [
        f"# {escape(result['title'])}",
        escape(result["setup"]),
        markdown_table(table_of(*ratios_table(result))),
        "Ratios are peer / ours: above 1 ours is better. Both sides are measured in turn; a ratio is the median over "
        "neighbouring pairs, with the quartiles.",
        escape(f"Differences between the outcomes of both sides: {checks}."),
        f"All measurements: [{name}.json]({name}.json). Written by `make speed NAME={name}`; {versions}; "
        f"code {label(result)}.",
    ]
    return "\n\n".join(parts) + "\n"


def _row(entry: dict[str, Any]) -> dict[str, str]:
    exact = entry["low"] == entry["high"]
    spread = "" if exact else f" ({entry['low']:.3f} to {entry['high']:.3f})"
    return {
        "title": f"{entry['title']}, against {entry['peer_name']}",
        "ours": f"{format_float(float(entry['ours']))} {entry['unit']}",
        "peer": f"{format_float(float(entry['peer']))} {entry['unit']}",
        "ratio": f"{entry['ratio']:.3f}{spread}",
        "target": "reported" if entry["target"] is None else f"at least {entry['target']:.3f}",
        "met": {True: "yes", False: "no", None: "-"}[entry["met"]],
    }
