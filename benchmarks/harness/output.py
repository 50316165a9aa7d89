"""What a method's arms say: the result file, its Markdown form and the figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.arms import Arm, Claim, Method
from benchmarks.harness.code import Codes, label
from benchmarks.harness.quantities import CPU_SECONDS, Metric, SeedResults
from benchmarks.harness.verdicts import CONFIDENCE, MeanAbove, summarize
from pangu_modules.common.files import write_atomically
from pangu_modules.report.markdown import escape, markdown_table
from pangu_modules.report.run_report import Column, collect_versions, figure_to_png
from pangu_modules.report.tables import format_float, table_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = dict[str, Any]


def judge(claim: Claim, by_seed: Mapping[int, SeedResults]) -> Result:
    """Return a claim's entry in the result file, from the seeds in which all its arms have its metrics.

    Raises:
        ValueError: there is no such seed.
    """
    arms, keys = claim.quantity.arms, [metric.key for metric in claim.quantity.metrics]
    seeds = [
        seed
        for seed, results in sorted(by_seed.items())
        if all(key in results.get(arm, {}) for arm in arms for key in keys)
    ]
    if not seeds:
        whose = f"{'both ' if len(arms) == 2 else ''}{' and '.join(arms)}"
        raise ValueError(f"claim {claim.id!r}: no seed has results of {whose} ({', '.join(keys)})")
    values = [claim.quantity.of(by_seed[seed]) for seed in seeds]
    summary = summarize(values, claim.rule.confidence if isinstance(claim.rule, MeanAbove) else CONFIDENCE)
    entry: Result = {
        "id": claim.id,
        "statement": claim.statement,
        "paper": claim.paper,
        "measured": summary.mean,
        "spread": summary.spread,
        "unit": claim.quantity.unit,
        "seeds": seeds,
        "values": values,
        "bounds": [summary.lower, summary.upper],
    }
    if claim.rule is not None:
        entry |= {"rule": str(claim.rule), "verdict": claim.rule.judge(values)}
    return entry


def result_of(
    method: Method, by_seed: Mapping[int, SeedResults], codes: Mapping[tuple[str, int], Codes] | None = None
) -> Result:
    """Return the content of the result file: gated claims, reported quantities, all raw numbers, code, versions.

    Args:
        method: what was run.
        by_seed: seed -> arm -> its numbers.
        codes: (arm, seed) -> the code that it ran, where that is known.
    """
    arms = {arm.name: _arm_entry(arm, by_seed) | _code_entry(method, arm, by_seed, codes or {}) for arm in method.arms}
    used = {code for entry in arms.values() for code in entry.get("code", [])}
    runs = [values for arms in by_seed.values() for values in arms.values()]
    return {
        "method": method.name,
        "title": method.title,
        "source": method.source,
        "setup": method.setup,
        "claims": [judge(claim, by_seed) for claim in method.claims if claim.rule is not None],
        "reported": [judge(claim, by_seed) for claim in method.claims if claim.rule is None],
        "arms": arms,
        "code": {code: files for each in (codes or {}).values() for code, files in each.items() if code in used},
        "seconds": sum(values["seconds"] for values in runs),
        "cpu_seconds": sum(values["cpu_seconds"] for values in runs),
        "versions": collect_versions(),
    }


def write_results(result: Result, method: Method, folder: Path) -> list[Path]:
    """Write ``<method>.json``, ``.md`` and ``.png`` to `folder`, each atomically, and return their paths."""
    stem = result["method"]
    return [
        write_atomically(folder / f"{stem}.json", json.dumps(result, indent=2, allow_nan=False) + "\n"),
        write_atomically(folder / f"{stem}.md", render(result, method.metrics)),
        write_atomically(folder / f"{stem}.png", figure_to_png(draw(result, method.figure))),
    ]


def claims_table(result: Result, kind: str = "claims") -> tuple[list[dict[str, str]], dict[str, str]]:
    """Return rows and columns of the table of "claims" or of what is "reported", as `table_of` takes them."""
    columns = {"statement": "claim" if kind == "claims" else "quantity", "paper": "paper"}
    columns |= {"measured": "measured here", "seeds": "seeds"}
    if kind == "claims":
        columns["verdict"] = "verdict"
    return [{key: _claim_row(entry)[key] for key in columns} for entry in result[kind]], columns


def terminal_rows(result: Result) -> list[dict[str, str]]:
    """Return the rows of a table of claims short enough for a terminal: claims by id, with the rules they are under."""
    rows = [(entry, _claim_row(entry)) for entry in result["claims"]]
    return [
        {"claim": entry["id"], "measured": row["measured"], "rule": entry["rule"], "verdict": row["verdict"]}
        for entry, row in rows
    ]


def render(result: Result, metrics: Sequence[Metric]) -> str:
    """Return the Markdown form of a result."""
    parts = [f"# {escape(result['title'])}", escape(f"{result['source']}. {result['setup']}")]
    parts += ["## Claims", markdown_table(table_of(*claims_table(result))), _how_to_read(result)]
    if result["reported"]:
        parts += ["## Reported, without a verdict", markdown_table(table_of(*claims_table(result, "reported")))]
    parts += ["## Arms", markdown_table(table_of(*_arms_table(result, metrics)))]
    parts += [f"![Each arm and seed]({result['method']}.png)", _provenance(result)]
    return "\n\n".join(parts) + "\n"


def draw(result: Result, metrics: Sequence[Metric]) -> Figure:
    """Draw each arm's values, one dot a seed and a bar at the mean, one panel a metric."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    names = list(result["arms"])
    figure = Figure(figsize=(2.2 + 3.6 * len(metrics), 1.0 + 0.34 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        for row, name in enumerate(names):
            values = values_of(result["arms"][name], metric)
            if not values:
                continue
            panel.plot(values, [row] * len(values), "o", color="C0", alpha=0.6)
            panel.plot([summarize(values).mean], [row], "|", color="black", markersize=14, markeredgewidth=2)
        panel.set_xlabel(_heading(metric))
        left, right = panel.get_xlim()
        if metric.log_axis and 0 < 3 * left < right:  # a narrow range is easier to read on a linear axis
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.grid(axis="x", alpha=0.25)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def values_of(arm: Result, metric: Metric) -> list[float]:
    """Return an arm's values of a metric, scaled, from the seeds that measured it."""
    results = arm["results"].values()
    return [metric.scale * numbers[metric.key] for numbers in results if metric.key in numbers]


def _arm_entry(arm: Arm, by_seed: Mapping[int, SeedResults]) -> Result:
    results = {str(seed): dict(by_seed[seed][arm.name]) for seed in sorted(by_seed) if arm.name in by_seed[seed]}
    return {"description": arm.description, "config": dict(arm.config), "results": results}


def _code_entry(
    method: Method, arm: Arm, by_seed: Mapping[int, SeedResults], codes: Mapping[tuple[str, int], Codes]
) -> Result:
    """Return the hashes of what an arm and those it needs ran; nothing if one of them is unknown."""
    names = [arm.name, *method.needed(arm)]
    keys = [(name, seed) for seed in by_seed for name in names if name in by_seed[seed] and arm.name in by_seed[seed]]
    if not keys or not all(key in codes for key in keys):
        return {}
    return {"code": sorted({code for key in keys for code in codes[key]})}


def _claim_row(entry: Result) -> dict[str, str]:
    return {
        "statement": entry["statement"],
        "paper": entry["paper"] or "-",
        "measured": measured_text(entry),
        "seeds": str(len(entry["seeds"])),
        "verdict": entry.get("verdict", "reported"),
    }


def measured_text(entry: Result) -> str:
    """Return mean and spread of a claim's entry with the unit, e.g. ``+2.600 ± 1.680 points``."""
    sign = "" if entry["unit"] == "times" else "+"
    whole = all(isinstance(value, int) for value in entry["values"])
    number = f"{entry['measured']:{sign},.0f}" if whole else f"{entry['measured']:{sign}.{_decimals(entry)}f}"
    spread = f" ± {format_float(entry['spread'], _decimals(entry))}" if entry["spread"] else ""
    return f"{number}{spread} {entry['unit']}".strip()


def _decimals(entry: Result) -> int:
    """Return the digits after the point that show two digits of the spread, between 1 and 4."""
    spread = entry["spread"]
    text = f"{spread:.1e}"
    return min(4, max(1, 1 - int(text.partition("e")[2]))) if spread else 2


def _arms_table(result: Result, metrics: Sequence[Metric]) -> tuple[list[dict[str, str]], dict[str, str]]:
    metrics = [*metrics, CPU_SECONDS]
    columns = {"arm": "arm", "description": "what it is", "seeds": "seeds"}
    columns |= {metric.key: _heading(metric) for metric in metrics}
    rows = []
    for name, arm in result["arms"].items():
        row = {"arm": name, "description": arm["description"], "seeds": str(len(arm["results"]))}
        for metric in metrics:
            values = values_of(arm, metric)
            if not values:
                row[metric.key] = "-"
                continue
            summary = summarize(values)
            spread = f" ± {format_float(summary.spread, metric.digits)}" if summary.spread else ""
            row[metric.key] = format_float(summary.mean, metric.digits) + spread
        rows.append(row)
    return rows, columns


def _heading(metric: Metric) -> str:
    return Column(metric.title, metric.unit).heading


def _how_to_read(result: Result) -> str:
    rules = "; ".join(f"{entry['id']}: {entry['rule']}" for entry in result["claims"])
    return escape(f"Measured values are mean and standard deviation over seeds, paired by seed. Rules: {rules}.")


def _provenance(result: Result) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    name = result["method"]
    return (
        f"All raw numbers: [{name}.json]({name}.json). Written by `make claims NAME={name}` in "
        f"{result['cpu_seconds'] / 60:.0f} minutes of CPU time, one thread for each run; {versions}; "
        f"code {label(result)}."
    )
