"""The end of a fit: the result table and paths on the terminal, and the run's report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pangu_modules.common.masking import mask_command, mask_secrets
from pangu_modules.engine.data_stages import DataStage
from pangu_modules.engine.folder import RunFolder, to_yaml
from pangu_modules.engine.making import DataResult
from pangu_modules.engine.request import Request
from pangu_modules.engine.result_table import narrow, result_columns, result_row
from pangu_modules.engine.run import StageResult
from pangu_modules.report.origin import Origin, collect_machine, commit_of
from pangu_modules.report.parts import add_parts
from pangu_modules.report.run_report import RunReport, collect_versions, learning_curves, terminal_table
from pangu_modules.report.writing import write_report


def result_rows(results: Mapping[str, StageResult | DataResult]) -> list[dict[str, Any]]:
    """Return a row per stage: test metrics (accuracies in percent), parameters, epochs, seconds of training."""
    return [{**({"stage": name} if name else {}), **result_row(result.plain())} for name, result in results.items()]


def result_tables(results: Mapping[str, StageResult | DataResult]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the stages that train, of those that sample, and of those that score, by a heading."""
    trained = {name: one for name, one in results.items() if isinstance(one, StageResult)}
    tables: dict[str, list[dict[str, Any]]] = {}
    if trained:
        tables["Result on the test set"] = result_rows(trained)
    made = {name: one for name, one in results.items() if name not in trained}
    for kind, heading in (("generate/", "Samples" if trained else "Result"), ("score/", "Scores")):
        rows = result_rows({n: one for n, one in made.items() if any(m.startswith(kind) for m in one.metrics)})
        if rows:
            tables[heading] = rows
    return tables


def next_commands(request: Request, folder: Path) -> list[str]:
    """Return the command lines that use the last checkpoint of a run, with the configuration the run had."""
    stage = list(request.recipe.stages)[-1]
    config = ["--config", str(folder / "config.yaml")]
    chosen = [] if request.recipe.single else ["--stage", stage]
    checkpoint = [*config, *chosen, "--ckpt_path", str(RunFolder(folder / stage).last)]
    exports = getattr(request.recipe.stages[stage].module.owner, "export_formats", ())
    if isinstance(request.recipe.stages[stage], DataStage):
        lines = [["export", *config, *chosen], ["plan", *config]]
        return [f"{request.program.call} {shlex.join(line)}" for line in lines]
    commands = ["validate", "test", "predict", *(["export"] if exports else [])]
    lines = [[command, *checkpoint] for command in commands]
    return [f"{request.program.call} {shlex.join(line)}" for line in [*lines, ["plan", *config]]]


def origin_of(request: Request, folder: Path) -> Origin:
    """Return the command line of this process, the commit of the code, the machine, and what to do next."""
    script = request.program.script
    started = ["pangu"] if script is None else ["python", str(script)]
    return Origin(
        command=mask_command([*started, *sys.argv[1:]]),
        # A user's own recipe lies in a repository of its own; a console script lies in none that matters.
        commit=commit_of(Path.cwd() if script is None else script.resolve().parent),
        machine=collect_machine(),
        next_commands=next_commands(request, folder),
    )


def finish(request: Request, folder: Path, results: Mapping[str, StageResult | DataResult]) -> None:
    """Write the report of a run and print its result table and paths."""
    tables = result_tables(results)
    labels = {name: name or request.program.name for name in results}
    report = RunReport(
        title=request.program.title,
        config_yaml=mask_secrets(to_yaml(request.recipe.plain())),
        versions=collect_versions(),
        seeds={labels[name]: result.seed for name, result in results.items()},
        seconds={labels[name]: result.seconds for name, result in results.items()},
        origin=origin_of(request, folder),
    )
    for heading, rows in tables.items():
        report.add_table(heading, rows, result_columns(rows))
    curves = {labels[name]: RunFolder(folder / name).metrics for name in results}
    for caption, figure in learning_curves({name: path for name, path in curves.items() if path.is_file()}).items():
        report.add_figure(figure, caption)
    for name in results:
        add_parts(folder / name, report, prefix=name)
    page, _ = write_report(report, folder)
    title = request.program.title
    for heading, rows in tables.items():
        shown = narrow(rows)
        terminal_table(shown, result_columns(shown), f"{title}\n{heading}" if title else heading)
        title = ""
    print(f"run folder  {folder}\nreport      {page}")
