"""How the threads of OpenMP wait: what a recipe asks for before torch is loaded."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SPINS = "1000"
RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def spin_briefly() -> None:
    """Let waiting threads sleep after a thousand turns (``GOMP_SPINCOUNT``), unless the user has said how they wait.

    GNU OpenMP, which torch brings along on Linux, otherwise lets them spin for milliseconds. Where cores are busy, a
    spinning thread keeps the very thread that it waits for from running: two recipes at once then take many times as
    long as one. libgomp reads the variable when torch loads it, so later calls have no effect on this process.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def running_a_recipe() -> bool:
    """Whether the script that is running is a file of the `recipes` package: ``python recipes/NAME.py``."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return script is not None and Path(script).resolve().parent == RECIPES
