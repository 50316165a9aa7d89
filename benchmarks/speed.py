"""``python -m benchmarks.speed [NAME]``: race a method, or all of them, against peers and write the ratios."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.discovery import load, names_of
from benchmarks.races.output import ratios_table, result_of, write_results
from benchmarks.races.race import MIN_REPEATS, REPEATS, Benchmark, UnequalOutcomeError, run_contests
from pangu_modules.report.run_report import terminal_table


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit code: 0, 1 if sides differ, 2 for a wrong argument."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__, allow_abbrev=False)
    parser.add_argument("name", nargs="?", help="method, e.g. scalenet (default: all)")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"pairs of measurements (default: {REPEATS})")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/speed"), help="where results go")
    options = parser.parse_args(arguments)
    if options.repeats < MIN_REPEATS:
        parser.error(f"--repeats {options.repeats}: a median with quartiles needs at least {MIN_REPEATS}")
    if options.name is None:
        return race_all(names_of("speed"), options.results, arguments)
    try:
        build = load("speed", options.name)
    except ValueError as error:
        parser.error(str(error))
    benchmark: Benchmark = build()
    start = time.perf_counter()
    try:
        ratios = run_contests(benchmark.contests, repeats=options.repeats)
    except UnequalOutcomeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    result = result_of(options.name, benchmark, ratios, time.perf_counter() - start)
    paths = write_results(result, options.results)
    terminal_table(*ratios_table(result), title=benchmark.title)
    print("\n".join(str(path) for path in paths))
    return 0


def race_all(names: Sequence[str], results: Path, arguments: list[str]) -> int:
    """Race each method in a process of its own, so that none meets what another left in memory."""
    codes = []
    for number, name in enumerate(names):
        print(f"{name} ({number + 1} of {len(names)}): {remaining_text(names[number:], results)}", flush=True)
        codes.append(subprocess.call([sys.executable, "-m", "benchmarks.speed", name, *arguments]))
    return max(codes, default=0)


def remaining_text(names: Sequence[str], results: Path) -> str:
    """Return a sentence on the minutes that these races take, from the times in earlier results."""
    known = []
    for path in (results / f"{name}.json" for name in names):
        seconds = json.loads(path.read_text(encoding="utf-8")).get("seconds") if path.is_file() else None
        known += [] if seconds is None else [float(seconds)]
    untimed = len(names) - len(known)
    others = f", and {untimed} benchmarks that were never timed" if untimed else ""
    return f"about {sum(known) / 60:.0f} minutes remain{others}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
