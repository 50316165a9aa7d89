"""The tables that the `plan` command prints: in units that people read, and on 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pangu_modules.report.run_report import Column, terminal_table

NAMES = {
    "forward_flops_per_sample": "forward pass per sample",
    "forward_flops_per_token": "forward pass per token",
    "inference_bytes": "weights in fp32",
    "training_bytes": "training in fp32, no activations",
    "packed_file_bytes": "packed file",
}
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
THROUGHPUT: Mapping[str, Column] = {
    "layout": Column("#"),
    "prefill": Column("prefill", "tok/s", 0),
    "first_ms": Column("first", "ms", 1),
    "decode": Column("decode", "tok/s", 0),
    "batch": Column("batch"),
    "step_ms": Column("step", "ms", 1),
    "gb": Column("GB", "", 1),
    "mostly": Column("mostly"),
}


def print_plan(figures: Mapping[str, Any], title: str) -> None:
    """Print parameters in full, memory in MB or GB (1e6, 1e9 bytes), work in MFLOP or GFLOP, and what is missing."""
    terminal_table(plan_rows(figures), title=title)
    for missing in figures.get("missing", ()):
        print(missing)


def print_throughput(rows: Sequence[Mapping[str, Any]], hardware: str) -> None:
    """Print the estimates: tokens per second and card, time of a first and of any token, batch, memory of each card.

    Layouts are numbered, and written out below the table as ``--layout`` takes them.
    """
    numbered = [{**row, "layout": number} for number, row in enumerate(rows, 1)]
    columns = {key: THROUGHPUT.get(key, key.replace("_", " ")) for key in numbered[0]}
    terminal_table(numbered, columns, title=f"Upper estimate per card: {hardware}")
    for number, row in enumerate(rows, 1):
        print(f"layout {number}: {str(row['layout']).replace(', ', ',')}")


def plan_rows(figures: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the figures as rows of a table: quantity, value, and the reference the value must equal."""
    reference = figures.get("reference", {})
    rows = []
    for name, value in figures.items():
        if isinstance(value, int):
            stated = readable_amount(name, reference[name]) if name in reference else ""
            quantity = NAMES.get(name, name.replace("_", " ").removesuffix(" bytes"))
            rows.append({"quantity": quantity, "value": readable_amount(name, value), "reference": stated})
    return rows


def readable_amount(name: str, value: float) -> str:
    """Return a figure of `plan` with its unit, by its name: bytes, operations, or a count.

    >>> readable_amount("inference_bytes", 538_060_032), readable_amount("parameters", 134_515_008)
    ('538 MB', '134,515,008')
    """
    if name.endswith("_bytes"):
        return _scaled(value, "B")
    if "_flops" in name:
        return _scaled(value, "FLOP")
    return f"{value:,}"


def _scaled(value: float, unit: str) -> str:
    """Return a value with three significant digits and the prefix that leaves at most three before the point."""
    for factor, prefix in PREFIXES:
        scaled = value / factor
        if scaled >= 0.9995:
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f} {prefix}{unit}"
    return f"{value:.0f} {unit}"
