"""``python -m benchmarks.claims [NAME]``: run a method's arms, or all methods', and write what they say."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.harness.arms import Method
from benchmarks.harness.discovery import load, names_of
from benchmarks.harness.estimate import remaining_text
from benchmarks.harness.output import result_of, terminal_rows, write_results
from benchmarks.harness.quick import run_quick
from benchmarks.harness.reuse import reuse_results
from benchmarks.harness.running import ArmsFailedError, codes_of, run_arms
from pangu_modules.report.run_report import terminal_table


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit code: 0, 1 if arms failed, 2 for a wrong argument."""
    parser = command_line()
    options = parser.parse_args(arguments)
    for name in ("seeds", "jobs"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} {value}: must be at least 1")
    if options.quick and (options.seeds or options.reuse or options.miniature):
        parser.error("--quick runs one arm on one seed at real size: leave out --seeds, --reuse and --miniature")
    if options.miniature:
        options.work = options.work / "miniature"
        options.results = options.work / "results"
    try:
        methods = [prepared(name, options) for name in ([options.name] if options.name else names_of("claims"))]
    except ValueError as error:
        parser.error(str(error))
    code = 0
    for number, method in enumerate(methods):
        if len(methods) > 1 and not options.quick:
            work = None if options.fresh else options.work
            remain = remaining_text(methods[number:], work, options.results, options.jobs)
            print(f"{method.name} ({number + 1} of {len(methods)}): {remain}", flush=True)
        try:
            (check if options.quick else measure)(method, options)
        except ArmsFailedError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 1
    return code


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__, allow_abbrev=False)
    parser.add_argument("name", nargs="?", help="method, e.g. scalenet (default: all)")
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
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one arm of the method in minutes, at real size on one seed, beside the committed numbers",
    )
    parser.add_argument("--work", type=Path, default=Path("benchmarks/.work"), help="where unfinished work is kept")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/claims"), help="where results go")
    return parser


def prepared(name: str, options: argparse.Namespace) -> Method:
    """Return a method with the options' seeds; earlier results are taken over if they are asked for.

    Raises:
        ValueError: there is no such method, or no results that can be taken over.
    """
    method: Method = load("claims", name)(miniature=options.miniature)
    if options.seeds:
        method = replace(method, seeds=options.seeds)
    if options.quick and not method.quick:
        raise ValueError(f"method {name!r} names no arm for a quick check; run it without --quick")
    if options.reuse:
        taken = reuse_results(method, options.results / f"{method.name}.json", options.work)
        arms = ", ".join(f"{arm} (seed {seed})" for arm, seed in taken)
        print(f"taken over: {arms or 'nothing'}")
    return method


def measure(method: Method, options: argparse.Namespace) -> None:
    """Run what is left of a method's arms, and write and print what they say."""
    by_seed = run_arms(method, options.work, jobs=options.jobs, fresh=options.fresh)
    result = result_of(method, by_seed, codes_of(method, options.work))
    paths = write_results(result, method, options.results)
    terminal_table(terminal_rows(result), title=method.title)
    print("\n".join(str(path) for path in paths))


def check(method: Method, options: argparse.Namespace) -> None:
    """Run a method's quick arm and print its numbers beside the committed ones."""
    outcome = run_quick(method, options.work / "quick", options.results / f"{method.name}.json", options.jobs)
    terminal_table(outcome.rows(), title=method.title)
    print(outcome.summary(), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
