"""``python -m pangu_modules.ascend doctor`` and ``report``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(words: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0, or 2 where something is wrong."""
    parser = argparse.ArgumentParser("python -m pangu_modules.ascend", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="what there is of torch, torch_npu, CANN and devices, and what is wrong")
    report = commands.add_parser("report", help="measure on this machine's NPUs, and write npu_report.json")
    report.add_argument("--output", type=Path, default=Path("npu_report.json"), help="the file; nothing is overwritten")
    given = parser.parse_args(words)
    if given.command == "doctor":
        from pangu_modules.ascend import doctor

        return doctor.main()
    from pangu_modules.ascend.hardware_report import main as report_main

    return report_main(given.output)


if __name__ == "__main__":
    sys.exit(main())
