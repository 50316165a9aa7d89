"""``python -m benchmarks.speed NAME``: race a method against its peers and write the ratios."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.harness.discovery import load
from benchmarks.races.output import ratios_table, result_of, write_results
from benchmarks.races.race import MIN_REPEATS, REPEATS, UnequalOutcomeError, run_contests
from pangu_modules.report.run_report import terminal_table


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit code: 0, 1 if sides differ, 2 for a wrong argument."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__, allow_abbrev=False)
    parser.add_argument("name", help="method, e.g. scalenet")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"pairs of measurements (default: {REPEATS})")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/speed"), help="where results go")
    options = parser.parse_args(arguments)
    if options.repeats < MIN_REPEATS:
        parser.error(f"--repeats {options.repeats}: a median with quartiles needs at least {MIN_REPEATS}")
    try:
        build = load("speed", options.name)
    except ValueError as error:
        parser.error(str(error))
    benchmark = build()
    try:
        ratios = run_contests(benchmark.contests, repeats=options.repeats)
    except UnequalOutcomeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    result = result_of(options.name, benchmark.title, benchmark.setup, ratios)
    paths = write_results(result, options.results)
    terminal_table(*ratios_table(result), title=benchmark.title)
    print("\n".join(str(path) for path in paths))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
