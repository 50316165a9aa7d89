"""The `evaluate` command: what a language model answers to tasks, as JSON beside the run and in its report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pangu_modules.common.errors import UsageError
from pangu_modules.common.files import write_atomically
from pangu_modules.engine.errors import usage_errors
from pangu_modules.report.parts import PARTS, add_table
from pangu_modules.report.run_report import Column, terminal_table
from pangu_modules.report.stored import STORED, stored_report
from pangu_modules.report.writing import write_report

EVALUATIONS = "evaluations"  # folder of the results, in that of a run
SETTINGS = ("tasks", "limit", "num_fewshot", "batch_size", "include_path")
COLUMNS: dict[str, Column | str] = {
    "task": "task",
    "metric": "metric",
    "value": Column("value", digits=4),
    "stderr": Column("standard error", digits=4),
    "num_fewshot": "examples before",
    "num_samples": "samples",
    "of_samples": "of",
}
Results = dict[str, Any]


def prepared(owner: Any, options: Mapping[str, Any]) -> Callable[[Any], Results]:
    """Return what evaluates a module, once its tasks are known and their data are read.

    Args:
        owner: the module's class; one that can be evaluated has ``evaluation(**settings)``.
        options: of the command line.

    Raises:
        UsageError: the module is no language model, no task is named, or one cannot be run.
    """
    evaluation = getattr(owner, "evaluation", None)
    if evaluation is None:
        raise UsageError(f"evaluate: {owner.__name__} is no language model; test measures it on its own test set")
    given = {name: options[name] for name in SETTINGS if options.get(name) is not None}
    if "tasks" not in given:
        raise UsageError("--tasks: name what to evaluate on, e.g. --tasks arc_easy,hellaswag --limit 100")
    with usage_errors("evaluate"):
        ready: Callable[[Any], Results] = evaluation(**given)
    return ready


def next_file(folder: Path, stem: str = "") -> Path:
    """Return the first ``<stem><number>.json`` that is free in a folder."""
    number = 0
    while (folder / f"{stem}{number:03d}.json").exists():
        number += 1
    return folder / f"{stem}{number:03d}.json"


def write_results(results: Results, output: Path, folder: Path) -> None:
    """Write and print the results of an evaluation, and add them to the report of the run.

    Args:
        results: ``rows`` with the keys of `COLUMNS`, ``seconds``, ``checkpoint``, ``global_step``, and the settings.
        output: the JSON file.
        folder: of the stage whose checkpoint it was.
    """
    with usage_errors("output"):
        write_atomically(output, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    rows, title = results["rows"], f"Tasks, {Path(results['checkpoint']).name} of step {results['global_step']}"
    terminal_table(rows, COLUMNS, title)
    print(f"evaluation  {output} ({results['seconds']:.1f} s)")
    if (folder / "config.yaml").is_file():  # a run's, whose report may be written again when it is trained longer
        add_table(folder, next_file(folder / PARTS, "evaluation_").stem, title, rows, COLUMNS)
    root = next((place for place in (folder, folder.parent) if (place / STORED).is_file()), None)
    if root is None:
        print(f"{folder} has no report yet that the table could join")
        return
    with usage_errors("report"):
        report = stored_report(root)
        report.add_table(title if root == folder else f"{folder.name}: {title}", rows, COLUMNS)
        page, _ = write_report(report, root)
    print(f"report      {page}")
