"""Where a run's numbers come from: the command, the code's commit and the machine. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

GIT_SECONDS = 5.0


@dataclass(frozen=True)
class Origin:
    """What made a run, and what can be done with it.

    Args:
        command: the command line, secrets masked (`mask_command`).
        commit: of the code (`commit_of`).
        machine: processor, cores, memory and platform (`collect_machine`).
        next_commands: command lines that use the run.
    """

    command: str = ""
    commit: str = ""
    machine: Mapping[str, str] = field(default_factory=dict)
    next_commands: Sequence[str] = ()


def collect_machine() -> dict[str, str]:
    """Return the processor's name, the cores this process may use, memory in GB (1e9 bytes) and the platform.

    What the system does not say is left out.
    """
    machine = {"processor": _processor(), "cores": _cores(), "memory": _memory(), "platform": platform.platform()}
    return {name: text for name, text in machine.items() if text}


def commit_of(folder: str | Path) -> str:
    """Return the commit of the git repository that holds `folder`, with ``-dirty`` where tracked files have changed.

    Empty outside a repository, before its first commit and without git.
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]  # no tag: the hash alone
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    try:  # Linux, where `platform.processor` says at most the architecture
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _cores() -> str:
    present = os.cpu_count() or 0
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else present
    return f"{usable} of {present}" if usable < present else str(present or "")


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf, and not every system these names
        return ""
    return f"{size / 1e9:.1f} GB"
