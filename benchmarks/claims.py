"""``python -m benchmarks.claims NAME``: run a method's arms and write what they say about its claims."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.harness.discovery import load
from benchmarks.harness.output import result_of, terminal_rows, write_results
from benchmarks.harness.reuse import reuse_results
from benchmarks.harness.running import ArmsFailedError, run_arms
from pangu_modules.report.run_report import terminal_table


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit code: 0, 1 if arms failed, 2 for a wrong argument."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__, allow_abbrev=False)
    parser.add_argument("name", help="method, e.g. scalenet")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: the method's)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes (default: all cores)")
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument("--fresh", action="store_true", help="forget the results of earlier runs")
    earlier.add_argument(
        "--reuse", action="store_true", help="take over the results of unchanged arms from the result file"
    )
    parser.add_argument(
        "--miniature",
        action="store_true",
        help="a run of seconds that shows that all arms work; its results mean nothing",
    )
    parser.add_argument("--work", type=Path, default=Path("benchmarks/.work"), help="where unfinished work is kept")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/claims"), help="where results go")
    options = parser.parse_args(arguments)
    for name in ("seeds", "jobs"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} {value}: must be at least 1")
    try:
        build = load("claims", options.name)
    except ValueError as error:
        parser.error(str(error))
    method = build(miniature=options.miniature)
    if options.seeds:
        method = replace(method, seeds=options.seeds)
    if options.miniature:
        options.work = options.work / "miniature"
        options.results = options.work / "results"
    if options.reuse:
        try:
            taken = reuse_results(method, options.results / f"{method.name}.json", options.work)
        except ValueError as error:
            parser.error(str(error))
        print(f"taken over: {', '.join(f'{name} (seed {seed})' for name, seed in taken) or 'nothing'}")
    try:
        by_seed = run_arms(method, options.work, jobs=options.jobs, fresh=options.fresh)
    except ArmsFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    result = result_of(method, by_seed)
    paths = write_results(result, method, options.results)
    terminal_table(terminal_rows(result), title=method.title)
    print("\n".join(str(path) for path in paths))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
