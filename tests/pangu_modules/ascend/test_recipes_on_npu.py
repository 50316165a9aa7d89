"""Recipes on the fake NPU: with the flag, without it, refused values, and an export that does not know the device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from npu_ranks import with_npus
from toy_recipe import recipe
from toys import ToyModule

RECIPE = recipe.derive(module={"dropout": 0.0}, trainer={"accelerator": "auto"})


def on_command_line(folder, *words):
    """Return the exit code, and what was printed."""
    import contextlib
    import io
    import os

    os.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        try:
            RECIPE.main(list(words))
        except SystemExit as ended:
            return ended.code, printed.getvalue()
    return 0, printed.getvalue()


def trained(folder):
    (run,) = (folder / "runs").rglob("result.json")
    return run.parent / "checkpoints" / "last.ckpt", json.loads(run.read_text())


@pytest.mark.parametrize("flag", [["--trainer.accelerator", "npu"], []])
def test_a_recipe_trains_there_and_its_export_is_the_cpus(tmp_path, flag):
    for name in ("npu", "cpu"):
        (tmp_path / name).mkdir()
    words = ["fit", "--trainer.enable_progress_bar", "false"]
    assert with_npus(on_command_line, tmp_path / "n", tmp_path / "npu", *words, *flag, npus=1)[0] == 0
    cpu = [*words, "--trainer.accelerator", "cpu"]
    assert with_npus(on_command_line, tmp_path / "c", tmp_path / "cpu", *cpu, npus=0)[0] == 0
    (npu_path, on_npu), (cpu_path, on_cpu) = trained(tmp_path / "npu"), trained(tmp_path / "cpu")
    assert b"npu:0" in npu_path.read_bytes()  # it really trained there
    assert b"npu:0" not in cpu_path.read_bytes()
    assert on_npu["metrics"] == on_cpu["metrics"]
    for path in (npu_path, cpu_path):
        module = ToyModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)
        module.export(path.parent / "exported", "state_dict")
    exported = [torch.load(path.parent / "exported" / "model.pt", weights_only=True) for path in (npu_path, cpu_path)]
    torch.testing.assert_close(exported[0], exported[1], rtol=0, atol=0)


REFUSED = {
    "--trainer.devices=3": "trainer: devices='3': this process sees 2 NPUs; give 1 to 2",
    "--trainer.devices=[0,0]": "trainer: devices=[0, 0]: 0 occurs twice",
    "--trainer.devices=[-2]": "trainer: devices=[-2]: -2 is negative",
    "--trainer.strategy=ddp_fork": "trainer: strategy='ddp_fork': a process forked or spawned",
    "--trainer.strategy=ddp_notebook": "trainer: strategy='ddp_notebook': a process forked or spawned",
    "--trainer.strategy=fsdp": "trainer: strategy='fsdp' is for CUDA: give strategy=\"model_parallel_npu\"",
    "--trainer.precision=64-true": "trainer: precision='64-true' does not exist on NPUs",
    "--trainer.precision=transformer-engine": "trainer: precision='transformer-engine' does not exist on NPUs",
}


def all_refused(folder):
    return {option: on_command_line(folder, "fit", option) for option in REFUSED}


def test_bad_values_exit_with_2_and_a_sentence_and_leave_no_run(tmp_path):
    said = with_npus(all_refused, tmp_path / "run", tmp_path)
    assert {option: code for option, (code, _) in said.items()} == dict.fromkeys(REFUSED, 2)
    wrong = {option: text for option, (_, text) in said.items() if f"error: {REFUSED[option]}" not in text}
    assert not wrong
    assert not list(tmp_path.glob("runs/*/version_*"))


SCRIPT = """
import fake_npu

fake_npu.install(2)
from toy_recipe import recipe

if __name__ == "__main__":
    recipe.derive(trainer={"accelerator": "auto"}).main()
"""


@pytest.mark.slow
def test_without_any_flag_a_recipe_trains_on_all_npus(tmp_path):
    """Lightning starts the second process, which runs the script anew."""
    root = Path(__file__).parents[3]
    (tmp_path / "toy.py").write_text(SCRIPT)
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests" / "support")])}
    command = [sys.executable, "toy.py", "fit"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    path, _ = trained(tmp_path)
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    assert b"npu:0" in path.read_bytes()
    assert checkpoint["global_step"] == 4  # of 64 samples, 8 at a time on each of two
    assert len(checkpoint["callbacks"]["exact_resume"]["processes"]) == 2
