"""Processes that a launcher started together: the first decides where the run lies, and the others follow it.

Lightning knows the ranks only once the Trainer is built; the run's folder is needed before. torchrun, srun, mpirun and
Lightning's own launcher name the rank in the environment.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pangu_modules.common.errors import UsageError
from pangu_modules.common.files import write_atomically
from pangu_modules.engine.folder import RUN_DIR_VARIABLE
from pangu_modules.engine.writer import Writer

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
LAUNCHES = (  # what the processes of one launch, and only they, have in common
    ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT"),
    ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
    ("OMPI_MCA_orte_hnp_uri", "PMIX_NAMESPACE"),
    ("MASTER_ADDR", "MASTER_PORT"),
)
PATIENCE = 120.0  # seconds that the others wait for the first process
TOGETHER = 300.0  # seconds within which a launcher has started all its processes

_runs = itertools.count()  # runs of this process: a loop over recipes makes several, on all ranks in the same order


def leads() -> bool:
    """Whether this process is the first of its launch: every rank that the environment names is 0."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def announcement(folder: Path) -> Path | None:
    """Return the file in `folder` by which the processes of this launch agree on their next run; None without one."""
    number = next(_runs)
    for names in LAUNCHES:
        if names[0] in os.environ:
            launch = "|".join(os.environ.get(name, "") for name in names)
            return folder / f".launch-{hashlib.sha256(launch.encode()).hexdigest()[:16]}-{number}.json"
    return None


@contextmanager
def announced(file: Path | None, decision: Mapping[str, Any]) -> Iterator[None]:
    """Tell the other processes what was decided, as long as the block lasts.

    Args:
        file: from `announcement`.
        decision: plain data; ``folder`` is the run's.
    """
    before = os.environ.get(RUN_DIR_VARIABLE)
    os.environ[RUN_DIR_VARIABLE] = json.dumps(dict(decision))
    if file is not None:
        tell(file, decision)
    try:
        yield
    finally:
        if file is not None:
            file.unlink(missing_ok=True)
        if before is None:  # what comes next in this process is another run
            os.environ.pop(RUN_DIR_VARIABLE, None)
        else:
            os.environ[RUN_DIR_VARIABLE] = before


def tell(file: Path, decision: Mapping[str, Any]) -> None:
    """Write what was decided, and by whom."""
    content = {"decision": dict(decision), "by": asdict(Writer.this()), "time": time.time()}
    write_atomically(file, json.dumps(content) + "\n")


def follow(file: Path | None, patience: float = PATIENCE) -> dict[str, Any]:
    """Return what the first process has decided: from the environment if it launched this one, else from `file`.

    Raises:
        UsageError: it says nothing in time.
    """
    if RUN_DIR_VARIABLE in os.environ:
        inherited: dict[str, Any] = json.loads(os.environ[RUN_DIR_VARIABLE])
        return inherited
    begun = time.time()
    while file is not None and time.time() - begun < patience:
        decision = _decision(file, begun)
        if decision is not None:
            return decision
        time.sleep(0.05)
    ranks = ", ".join(f"{name}={os.environ[name]}" for name in RANKS if name in os.environ)
    place = (
        "no launcher that is known names the launch" if file is None else f"nothing in {file} after {patience:.0f} s"
    )
    raise UsageError(
        f"this process ({ranks}) follows the first one of its launch, which has not said where the run lies ({place}): "
        "start all processes from one folder that their machines share"
    )


def _decision(file: Path, begun: float) -> dict[str, Any] | None:
    """Return the decision in `file`, unless an earlier launch of the same name has left it there."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        by, decision, told = Writer(**content["by"]), dict(content["decision"]), float(content["time"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    fresh = by.alive if by.local else told > begun - TOGETHER
    return decision if fresh else None
