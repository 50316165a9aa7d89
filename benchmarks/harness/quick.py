"""A quick check of a method: one of its arms at real size on one seed, beside the committed numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.harness.arms import Method
from benchmarks.harness.quantities import CPU_SECONDS
from benchmarks.harness.running import run_arms

SEED = 0


@dataclass(frozen=True)
class QuickCheck:
    """The numbers of a method's quick arm, as measured now and as committed (empty where nothing is)."""

    method: Method
    measured: Mapping[str, float]
    committed: Mapping[str, float]

    def rows(self) -> list[dict[str, float | str | None]]:
        """Return the rows of a table: what the method shows or claims of the arm, unscaled, and its CPU time."""
        claimed = [claim.quantity for claim in self.method.claims if self.method.quick in claim.quantity.arms]
        metrics = [*self.method.metrics, *(metric for quantity in claimed for metric in quantity.metrics), CPU_SECONDS]
        keys = dict.fromkeys(metric.key for metric in metrics if metric.key in self.measured)
        return [{"number": key, "now": self.measured[key], "committed": self.committed.get(key)} for key in keys]

    def summary(self) -> str:
        """Return how many of the arm's numbers are those committed; times are left out."""
        keys = [key for key in self.measured if not key.endswith("seconds")]
        equal = sum(self.measured[key] == self.committed.get(key) for key in keys)
        return f"{self.method.quick}, seed {SEED}: {equal} of {len(keys)} numbers equal the committed ones exactly"


def run_quick(method: Method, work_folder: Path, result_file: Path, jobs: int) -> QuickCheck:
    """Run the quick arm and those it needs, anew; nothing is written but to the work folder.

    Args:
        method: whose arm runs.
        work_folder: where it works.
        result_file: the committed results.
        jobs: worker processes.

    Raises:
        ValueError: the method names no quick arm.
        ArmsFailedError: an arm failed.
    """
    if not method.quick:
        raise ValueError(f"method {method.name!r} names no arm for a quick check; give its Method(quick=...)")
    arm = method.arm(method.quick)
    arms = tuple(each for each in method.arms if each.name in (*method.needed(arm), arm.name))
    small = replace(method, arms=arms, claims=(), seeds=SEED + 1)
    measured = run_arms(small, work_folder, jobs=jobs, fresh=True)[SEED][arm.name]
    stored = json.loads(result_file.read_text(encoding="utf-8")) if result_file.is_file() else {"arms": {}}
    committed = stored["arms"].get(arm.name, {"results": {}})["results"].get(str(SEED), {})
    return QuickCheck(method, measured, committed)
