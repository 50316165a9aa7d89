"""``python -m pangu_modules.ascend report``: what only hardware can tell, measured and written to be sent back.

Nothing of this library was measured on an NPU so far. The report holds, in under a quarter of an hour: the machine, the
numbers of each fused operator against its reference, trainings on one NPU and on two, and tokens per second of a
decoder with and without fused operators. A part that fails is written down with its error, and the next one begins.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pangu_modules.ascend import availability, doctor
from pangu_modules.common.files import check_new, write_atomically

SECONDS_OF_A_FIT = 180
FITS: dict[str, dict[str, str]] = {
    "cpu": {"accelerator": "cpu", "strategy": "auto"},
    "float32": {},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "16-mixed": {"precision": "16-mixed"},
    "ddp of two": {"devices": "2", "strategy": "ddp_npu"},
}


def main(output: Path) -> int:
    """Write the report to a new file; return 0, or 2 where there is no NPU to measure or the file cannot be written."""
    problem = availability.problem()
    if problem is not None:
        print(f"there is no NPU to report on: {problem}", file=sys.stderr)
        return 2
    try:
        check_new(output, "--output")
        write_atomically(output, json.dumps(measured(), indent=2) + "\n")
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"report: {output}; please attach it to an issue of this project")
    return 0


def measured() -> dict[str, Any]:
    """Return all parts of the report as plain data."""
    from pangu_modules.ascend.hardware_operators import compare_operators, tokens_per_second

    found, problems = doctor.examine()
    return {
        "machine": found,
        "problems": [str(problem) for problem in problems],
        "fits": {name: attempted(f"fit, {name}", partial(run_fit, options)) for name, options in FITS.items()},
        "operators": attempted("operators", compare_operators),
        "tokens_per_second": attempted("tokens per second", tokens_per_second),
    }


def attempted(name: str, part: Callable[[], Any]) -> Any:
    """Return a part of the report, or its error: whatever goes wrong on new hardware, the rest is worth having."""
    start = time.perf_counter()
    try:
        result = part()
    except Exception as error:
        result = {"error": "".join(traceback.format_exception(error))[-4000:]}
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return result


def run_fit(options: dict[str, str]) -> dict[str, Any]:
    """Train in a process of its own, which a hang or a crash does not outlive.

    Args:
        options: of `hardware_fit`.
    """
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "fit.json"
        command = [sys.executable, "-m", "pangu_modules.ascend.hardware_fit", str(output), *words]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_OF_A_FIT)
        if done.returncode != 0 or not output.is_file():
            raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-3000:]}")
        result: dict[str, Any] = json.loads(output.read_text())
    return {**result, "seconds": round(time.perf_counter() - start, 1)}
