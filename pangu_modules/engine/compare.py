"""``pangu compare RUN RUN``: results, differing settings and overlaid learning curves of runs, as one HTML page.

It reads the files of runs (``config.yaml``, ``result.json``, ``metrics.csv``) and imports nothing heavy.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from pangu_modules.common.errors import UsageError
from pangu_modules.common.files import write_atomically
from pangu_modules.common.masking import mask_secrets
from pangu_modules.common.names import nearest
from pangu_modules.engine.folder import RUNS, RunFolder, versions
from pangu_modules.engine.result_table import narrow, result_columns, result_row
from pangu_modules.report.html import render_html
from pangu_modules.report.run_report import RunReport, learning_curves, terminal_table

ABSENT = "-"
DESCRIPTION = "Compare runs: their results, the settings they differ in, and their learning curves as one HTML page."


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it.

    Attributes:
        label: what the tables and curves call it.
        config: its ``config.yaml``.
        results: the content of each stage's ``result.json``, None while it is unfinished.
        metrics: each stage's ``metrics.csv``, where there is one.
    """

    label: str
    config: Mapping[str, Any]
    results: Mapping[str, Mapping[str, Any] | None]
    metrics: Mapping[str, Path] = field(default_factory=dict)


def main(arguments: Sequence[str], call: str = "pangu compare") -> None:
    """Compare the runs that the arguments name; exits with code 2 and a short message on a bad value."""
    parser = _Parser(prog=call, description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="Folder of a run, below runs/ or anywhere; or a recipe's name, for its newest run.",
    )
    parser.add_argument("--output", type=Path, help="New HTML file (default: runs/compare_N.html).")
    try:
        given = parser.parse_args(list(arguments))
        if len(given.runs) < 2:
            raise UsageError(f"give two runs or more, got {len(given.runs)}")
        runs = read_runs(given.runs)
        output = _new_page(given.output)
    except UsageError as error:
        print(f"error: {error}\nSee: {call} --help", file=sys.stderr)
        raise SystemExit(2) from None
    rows, settings = result_rows(runs), differing_settings(runs)
    write_atomically(output, render_html(_report(runs, rows, settings)))
    shown = narrow(rows)
    terminal_table(shown, result_columns(shown), "Result on the test set")
    if settings:
        terminal_table(settings, title="Settings that differ")
    else:
        print("no setting differs")
    print(f"page  {output}")


def read_runs(names: Sequence[str]) -> list[Run]:
    """Return the runs of the folders named; labels are as short as they can be and differ.

    Raises:
        UsageError: a folder is no run, one of its files is damaged, or a run is named twice.
    """
    folders = [find_run(name) for name in names]
    for number, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:number]]:
            raise UsageError(f"{names[number]}: {folder} is named twice; give different runs")
    short = [folder.name for folder in folders]
    longer = [f"{folder.resolve().parent.name}/{folder.name}" for folder in folders]
    labels = next(
        (tried for tried in (short, longer) if len(set(tried)) == len(tried)), [str(path) for path in folders]
    )
    return [read_run(folder, label) for folder, label in zip(folders, labels, strict=True)]


def find_run(name: str, root: Path = RUNS) -> Path:
    """Return the folder of a run: as given, below ``runs/``, or the newest of the recipe of that name.

    Raises:
        UsageError: there is none.
    """
    for folder in (Path(name), root / name):
        if (folder / "config.yaml").is_file():
            return folder
        newest = versions(folder.name, folder.parent)
        if newest and (newest[-1] / "config.yaml").is_file():
            return newest[-1]
    if Path(name).exists():
        raise UsageError(f"{name} is no run: it holds no config.yaml; give a folder like {root}/<recipe>/version_0")
    known = [str(path.parent.relative_to(root)) for path in sorted(root.glob("*/version_*/config.yaml"))]
    raise UsageError(f"{name}: there is no such folder, here or in {root}/.{nearest(name, known)}")


def read_run(folder: Path, label: str) -> Run:
    """Return a run.

    Raises:
        UsageError: a file of it cannot be read.
    """
    config = _read(folder / "config.yaml")
    # A pipeline's configuration has a stage at each key; that of one stage has a module.
    stages = [""] if "module" in config else list(config)
    parts = [config[stage] if stage else config for stage in stages]
    if not all(isinstance(part, dict) and "module" in part for part in parts):
        raise UsageError(f"{folder} is no run of a recipe: its config.yaml has no module; leave it out")
    results = {stage: _read(path) if (path := RunFolder(folder / stage).result).is_file() else None for stage in stages}
    metrics = {stage: path for stage in stages if (path := RunFolder(folder / stage).metrics).is_file()}
    return Run(label, config, results, metrics)


def result_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row per run and stage, as of a run's own result table; an unfinished one has dashes."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        for stage, result in run.results.items():
            named = {"run": run.label, **({"stage": stage} if stage else {})}
            rows.append({**named, **({} if result is None else result_row(result))})
    return rows


def differing_settings(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Return a row per setting in which the runs differ: its dotted name, and each run's value."""
    flat = [dict(_leaves(run.config)) for run in runs]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    rows = []
    for name in names:
        values = [_text(name, settings[name]) if name in settings else ABSENT for settings in flat]
        if len(set(values)) > 1:
            rows.append({"setting": name, **{run.label: value for run, value in zip(runs, values, strict=True)}})
    return rows


def _report(runs: Sequence[Run], rows: list[dict[str, Any]], settings: list[dict[str, str]]) -> RunReport:
    report = RunReport(title="Comparison of " + ", ".join(run.label for run in runs))
    report.add_table("Result on the test set", rows, result_columns(rows))
    if settings:
        report.add_table("Settings that differ", settings)
    curves = {f"{run.label} {stage}".strip(): path for run in runs for stage, path in run.metrics.items()}
    for caption, figure in learning_curves(curves).items():
        report.add_figure(figure, caption)
    return report


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path} cannot be read: {reason}; leave the run out, or restore the file") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UsageError(f"{path} is damaged, or no file of a run: it holds no named values; leave the run out")
    return content


def _leaves(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings by dotted names; an empty mapping is a value."""
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(name: str, value: Any) -> str:
    """Return a value as JSON writes it, secrets masked."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return mask_secrets(f"{name}: {shown}").removeprefix(f"{name}: ")


def _new_page(output: Path | None) -> Path:
    """Return the file to write, which does not exist yet."""
    if output is None:
        numbers = [int(path.stem[8:]) for path in RUNS.glob("compare_*.html") if path.stem[8:].isdigit()]
        return RUNS / f"compare_{max(numbers, default=-1) + 1}.html"
    if output.exists() or output.is_symlink():
        raise UsageError(f"--output: {output} is there already, and nothing is overwritten; give another name")
    return output


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)
