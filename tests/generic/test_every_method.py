"""Every callback and plan: it fits, resumes to the same bits after a kill, loads without recipes, exports, reloads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from old_checkpoints import Samples
from settings import NO_METHODS, SETTINGS, STEPS, data_of, trainer_of

from pangu_modules.common import registry

KILLED_AT = 4
LOAD = """
import json, sys
import pangu_modules
for name, kind in json.loads(sys.argv[1]).items():
    module = getattr(pangu_modules, kind).load_from_checkpoint(f"{sys.argv[2]}/{name}/last.ckpt", weights_only=True)
    print(name, *[plan.kind for plan in module.config.structure])
assert not {"recipes", "callbacks", "datamodules", "benchmarks"} & set(sys.modules)
"""


class KillAt(Callback):
    """Saves a checkpoint and breaks off."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise ZeroDivisionError


def run(setting, folder, *extra, module=None, ckpt_path=None):
    callbacks = [] if setting.callback is None else [setting.build_callback("method")]
    module = setting.build_module() if module is None else module
    torch.manual_seed(1)
    trainer = trainer_of(folder, [*callbacks, *extra])
    resumed = {"ckpt_path": str(ckpt_path), "weights_only": True} if ckpt_path else {}
    trainer.fit(module, datamodule=data_of(setting), **resumed)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("methods")


@pytest.fixture(scope="module")
def finished(folder):
    """Modules of whole runs by name, made when they are asked for."""
    runs = {}

    def get(name):
        if name not in runs:
            runs[name] = run(SETTINGS[name], folder / name)
        return runs[name]

    return get


def test_no_callback_plan_or_model_is_missing():
    callbacks = {setting.callback for setting in SETTINGS.values() if setting.callback}
    assert callbacks | set(NO_METHODS) == set(registry.names("callbacks"))
    assert {plan for setting in SETTINGS.values() for plan in setting.plans} == set(registry.names("plan"))
    architectures = {setting.module[1].get("architecture") for setting in SETTINGS.values()}
    assert set(registry.names("architecture")) <= architectures


@pytest.mark.parametrize("name", SETTINGS)
def test_a_killed_run_resumes_to_the_same_bits(name, finished, folder):
    setting, whole = SETTINGS[name], finished(name)
    assert [plan.kind for plan in whole.config.structure] == list(setting.plans)
    cut = folder / f"{name}-cut"
    with pytest.raises(ZeroDivisionError):
        run(setting, cut, KillAt(KILLED_AT, cut / "killed.ckpt"))
    again = type(whole).load_from_checkpoint(cut / "killed.ckpt", weights_only=True)
    run(setting, cut, module=again, ckpt_path=cut / "killed.ckpt")
    states = [torch.load(path / "last.ckpt", weights_only=True) for path in (folder / name, cut)]
    assert states[0]["global_step"] == states[1]["global_step"] == STEPS
    for key in ("state_dict", "callbacks", "optimizer_states"):
        assert_same(states[0][key], states[1][key], key)


def assert_same(first, second, where):
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same(one, other, f"{where}.{number}")
    else:
        assert first == second, where


def test_checkpoints_load_in_a_process_without_recipes(finished, folder):
    for name in SETTINGS:
        finished(name)
    kinds = json.dumps({name: setting.module[0] for name, setting in SETTINGS.items()})
    environment = {**os.environ, "PYTHONPATH": str(Path(registry.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, kinds, str(folder)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [(name, tuple(plans)) for name, *plans in lines] == [(name, s.plans) for name, s in SETTINGS.items()]


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if not setting.images])
def test_a_language_model_exports_and_reloads(name, finished, tmp_path):
    from pangu_modules.llm.models.loading import load_causal_lm

    module = finished(name).eval()
    module.export(tmp_path / "folder")
    plain = load_causal_lm(str(tmp_path / "folder"), trust_remote_code=True).eval()
    tokens = Samples(4, 3, images=False).columns["input_ids"]
    with torch.no_grad():
        # measured 0 but for adapters, which the export adds to the weights: 2e-7
        torch.testing.assert_close(plain(tokens).logits, module.model(tokens).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.images])
def test_an_image_model_exports_and_reloads(name, finished, tmp_path):
    module = finished(name).eval()
    module.export(tmp_path / "folder", "safetensors")
    again = type(module).load_exported(tmp_path / "folder").eval()
    batch = Samples(4, 3, images=True).columns
    with torch.no_grad():
        assert torch.equal(again.compute_outputs(batch)["logits"], module.compute_outputs(batch)["logits"])
