"""Importing the packages has no side effect, whatever the script that does so is called or says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = '''"""A sweep: calls recipe.main() for many seeds."""
import os
import sys

before = dict(os.environ)
import pangu_modules, callbacks, datamodules

heavy = {"torch", "lightning", "transformers", "pydantic"} & set(sys.modules)
assert not heavy, heavy
from pangu_modules import Config, Recipe, Stage

heavy = {"torch", "lightning", "transformers", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
assert dict(os.environ) == before
print("went on")
'''


def test_importing_prints_nothing_ends_nothing_and_loads_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "sweep.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "sweep.py"], cwd=tmp_path, text=True, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")
