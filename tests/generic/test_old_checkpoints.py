"""Checkpoints from before fields were renamed load, compute the same, and resume to the same end."""

from __future__ import annotations

import json
from pathlib import Path

import old_checkpoints
import pytest
import torch
from old_checkpoints import RUNS, export_teacher, outputs_of

import pangu_modules

FOLDER = Path(old_checkpoints.__file__).parent / "checkpoints"
NUMBERS = json.loads((FOLDER / "outputs.json").read_text(encoding="utf-8"))
# The numbers are stored with seven digits; on another processor sums are rounded in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def loaded(name):
    return getattr(pangu_modules, RUNS[name].module).load_from_checkpoint(FOLDER / f"{name}.ckpt", weights_only=True)


@pytest.mark.parametrize("name", RUNS)
def test_an_old_checkpoint_loads_and_computes_what_it_did(name):
    module = loaded(name)
    torch.testing.assert_close(outputs_of(module), NUMBERS[name]["checkpoint"], **CLOSE)
    assert (FOLDER / f"{name}.ckpt").stat().st_size < 60_000


@pytest.mark.filterwarnings("ignore:.*is now")
@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run.callbacks and not run.final])
def test_an_old_run_resumes_to_its_old_end(name, tmp_path):
    run, module = RUNS[name], loaded(name)
    teacher = export_teacher(FOLDER / "dense.ckpt", tmp_path / "teacher") if name == "pruned" else None
    old_checkpoints.fit(run, module, tmp_path, teacher=teacher, ckpt_path=FOLDER / f"{name}.ckpt")
    torch.testing.assert_close(outputs_of(module), NUMBERS[name]["end"], **CLOSE)
