"""The wheel beside torch and lightning and nothing else trains on an NPU."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
SCRIPT = """
import importlib.util
import sys

assert importlib.util.find_spec("pydantic") is importlib.util.find_spec("transformers") is None
import fake_npu

fake_npu.install(2)
import pangu_modules.ascend
from npu_training import fit

assert pangu_modules.__file__.startswith(sys.prefix), pangu_modules.__file__
trainer = fit(".", accelerator="npu", devices=[1], strategy="single_npu", precision="bf16-mixed")
assert str(trainer.strategy.root_device) == "npu:1" and trainer.precision_plugin.device == "npu"
from pangu_modules.ascend.__main__ import main

sys.exit(main(["doctor"]))
"""


def needed(names: list[str]) -> set[str]:
    """Return the distributions that these need, without extras, these included."""
    found: set[str] = set()
    while names:
        name = names.pop()
        if name.lower() in found:
            continue
        found.add(name.lower())
        requirements = map(Requirement, importlib.metadata.requires(name) or [])
        names += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def link(name: str, site: Path) -> None:
    """Make a distribution of this environment one of another, without a copy."""
    distribution = importlib.metadata.distribution(name)
    tops = {Path(file).parts[0] for file in distribution.files or [] if Path(file).parts[0] != ".."}
    for top in tops - {"__pycache__"}:
        if not (site / top).exists():
            (site / top).symlink_to(Path(str(distribution.locate_file(top))))


@pytest.mark.slow
def test_torch_and_lightning_are_all_it_needs(tmp_path):
    environment, support = tmp_path / "environment", tmp_path / "support"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    for name in needed(["torch", "lightning"]):
        link(name, site)
    _install_wheel(tmp_path, environment)
    support.mkdir()
    for name in ("fake_npu.py", "npu_training.py"):
        shutil.copy(ROOT / "tests" / "support" / name, support)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables["PYTHONPATH"] = str(support)
    python = str(environment / "bin" / "python")
    done = subprocess.run([python, "-c", SCRIPT], cwd=tmp_path, env=variables, text=True, capture_output=True)
    assert done.returncode == 2, done.stderr  # the doctor's: here are neither driver nor CANN
    assert "devices    2 x Fake910" in done.stdout


def _install_wheel(folder: Path, environment: Path) -> None:
    source = folder / "source"  # building writes into the source folder
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    for name in listed:
        if name.partition("/")[0] not in ("tests", "benchmarks", "docs", "examples") and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip"]
    quiet = ["--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *quiet, "--no-build-isolation", "--wheel-dir", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [*pip, "--python", str(environment / "bin" / "python"), "install", *quiet, str(wheel)]
    subprocess.run(install, check=True, env=variables)
