"""Importing us works whatever state torch_npu is in; asking for an NPU says what is wrong and what mends it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from npu_ranks import with_npus

ROOT = Path(__file__).parents[3]
REAL = "PANGU_NPU_PYTHON"  # a Python with torch, lightning and the real torch_npu, on a machine without CANN
MINOR = ".".join(torch.__version__.split(".")[:2])
SCRIPT = """
import os
import sys

import pangu_modules

assert not {"torch", "torch_npu"} & set(sys.modules)
import pangu_modules.ascend

assert "torch_npu" not in sys.modules
assert "TORCH_DEVICE_BACKEND_AUTOLOAD" not in os.environ  # processes started from here import torch as they would have
from lightning.pytorch import Trainer

options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
Trainer(accelerator="cpu", **options)
try:
    Trainer(accelerator="npu", devices=1, strategy="single_npu", **options)
except Exception as error:
    print(error)
"""
MESSAGES = {
    "absent": ("", f"torch_npu is not installed: on a machine with CANN, install torch_npu matching torch {MINOR}"),
    "broken": (
        'raise ImportError("cannot import name vision")',
        "torch_npu is installed but broken (ImportError: cannot import name vision): install torch_npu matching torch "
        f"{MINOR} (pip install 'torch_npu=={MINOR}.*') again; on a machine without an NPU pip uninstall torch_npu, or "
        "set TORCH_DEVICE_BACKEND_AUTOLOAD=0",
    ),
    "other minor": (
        'raise SystemExit("it was imported")',
        f"torch_npu 2.3.1 is made for torch 2.3, and this is torch {torch.__version__}: install torch_npu matching",
    ),
    "without CANN": (
        'raise ImportError("libhccl.so: cannot open shared object file: No such file or directory")',
        "torch_npu does not find CANN's libraries (libhccl.so: cannot open shared object file: No such file or "
        "directory): install CANN, then source /usr/local/Ascend/cann/set_env.sh",
    ),
    "beside CUDA": (
        'raise RuntimeError("Two accelerators cannot be used at the same time in PyTorch: npu and cuda.")',
        f"install torch {MINOR} again, as the CPU build that pytorch.org offers",
    ),
}


def install(folder: Path, state: str) -> None:
    """Write a torch_npu that torch loads by itself, as it does the real one."""
    if state == "absent":
        return
    version = "2.3.1" if state == "other minor" else f"{MINOR}.0"
    (folder / "torch_npu").mkdir()
    (folder / "torch_npu" / "__init__.py").write_text(f"{MESSAGES[state][0]}\ndef _autoload(): ...\n")
    metadata = folder / f"torch_npu-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch_npu\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")


def run(words: list[str], folder: Path, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "TORCH_DEVICE_BACKEND_AUTOLOAD"}
    variables["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT), str(ROOT / "tests" / "support")])
    return subprocess.run([python, *words], cwd=folder, env=variables, text=True, capture_output=True)


def problem(folder):
    import lightning

    from pangu_modules.ascend import NPUAccelerator, availability

    sys.path.insert(0, folder)
    assert not NPUAccelerator.is_available()
    with pytest.raises(MisconfigurationException) as caught:
        lightning.Fabric(accelerator="npu", devices=1, strategy="single_npu")
    assert str(caught.value) == f'accelerator="npu": {availability.problem()}'
    with pytest.raises(MisconfigurationException, match=r'^strategy="single_npu": torch'):
        lightning.Trainer(accelerator="cpu", strategy="single_npu", logger=False)
    assert lightning.Fabric(accelerator="cpu", devices=1).device.type == "cpu"
    return str(availability.problem())


@pytest.mark.parametrize("state", list(MESSAGES))
def test_asking_for_the_npu_says_why_not(tmp_path, state):
    install(tmp_path, state)
    assert MESSAGES[state][1] in with_npus(problem, tmp_path / "run", str(tmp_path), npus=0)


@pytest.mark.parametrize("state", [pytest.param(n, marks=[pytest.mark.slow] * (n != "broken")) for n in MESSAGES])
def test_importing_works_where_importing_torch_does_not(tmp_path, state):
    install(tmp_path, state)
    done = run(["-c", SCRIPT], tmp_path)
    assert done.returncode == 0, done.stderr
    (said,) = done.stdout.splitlines()
    assert said.startswith('accelerator="npu": ')
    assert MESSAGES[state][1] in said


def test_a_recipe_answers_with_the_sentence_and_exit_code_2_and_leaves_nothing(tmp_path):
    script = "from toy_recipe import recipe\nrecipe.main(['fit', '--trainer.accelerator', 'npu'])"
    done = run(["-c", script], tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f'error: trainer: accelerator="npu": {MESSAGES["absent"][1]}')
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.glob("runs/*/version_*"))


@pytest.mark.slow
@pytest.mark.skipif(REAL not in os.environ, reason=f"{REAL} names no Python with torch, lightning and torch_npu")
def test_the_real_wheel_without_cann(tmp_path):
    python = os.environ[REAL]
    alone = run(["-c", "import torch"], tmp_path, python)
    assert alone.returncode != 0
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD" in alone.stderr
    done = run(["-c", SCRIPT.replace('assert "torch_npu" not in sys.modules\n', "")], tmp_path, python)
    assert done.returncode == 0, done.stderr
    assert "torch_npu does not find CANN's libraries (lib" in done.stdout.splitlines()[-1]
    doctor = run(["-m", "pangu_modules.ascend", "doctor"], tmp_path, python)
    assert doctor.returncode == 2
    assert "wrong: torch_npu does not find CANN's libraries" in doctor.stdout
