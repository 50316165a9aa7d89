"""The meeting points of a method with training, used without any method: structure, objectives, sample weights."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from pydantic import ValidationError
from toys import ToyData, ToyModule, Widen, WidenPlan, squared_error

from datamodules import calibration_batches
from pangu_modules import Objective
from pangu_modules.training.objectives import evaluate, weighted_mean
from pangu_modules.training.structure import describe, find_plan, plan_from


def quiet_trainer(folder: Path, **arguments: object) -> Trainer:
    defaults = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_progress_bar": False}
    return Trainer(default_root_dir=folder, enable_model_summary=False, **{**defaults, **arguments})


# Structure.


def test_plan_keeps_the_function_and_is_recorded() -> None:
    module = ToyModule.Config(width=8, dropout=0.0).build(features=4)
    batch = {"input": torch.randn(3, 4)}
    before = module.compute_outputs(batch)["prediction"]
    module.restructure(WidenPlan(width=20, source="widen"))
    torch.testing.assert_close(module.compute_outputs(batch)["prediction"], before, rtol=0, atol=1e-6)
    assert module.model[0].out_features == 20
    assert describe(module.config.structure) == "base > widen"
    assert module.hparams["config"]["structure"] == [{"kind": "widen", "source": "widen", "width": 20}]


def test_checkpoint_rebuilds_base_and_plans(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=[Widen.Config(width=12).build(name="widen")])
    module = ToyModule.Config(width=8).build(features=4)
    trainer.fit(module, datamodule=ToyData.Config(batch_size=8).build())
    path = tmp_path / "model.ckpt"
    trainer.save_checkpoint(path)
    loaded = ToyModule.load_from_checkpoint(path, weights_only=True)
    assert loaded.model[0].out_features == 12
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_checkpoint_of_another_structure_is_refused(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path)
    wide = ToyModule.Config().build(features=4)
    wide.restructure(WidenPlan(width=16))
    trainer.fit(wide, datamodule=ToyData.Config(batch_size=8).build())
    trainer.save_checkpoint(tmp_path / "wide.ckpt")
    narrow = ToyModule.Config().build(features=4)
    message = r"structure is \[base > widen\], this module's is \[base\].*load_from_checkpoint"
    with pytest.raises(ValueError, match=message):
        quiet_trainer(tmp_path).fit(
            narrow, datamodule=ToyData.Config(batch_size=8).build(), ckpt_path=tmp_path / "wide.ckpt", weights_only=True
        )


def test_a_callback_finds_its_own_plan_after_a_resume(tmp_path: Path) -> None:
    module = ToyModule.Config().build(features=4)
    for _ in range(2):  # the second fit finds the plan of the first
        callback = Widen.Config(width=12).build(name="widen")
        quiet_trainer(tmp_path, callbacks=[callback]).fit(module, datamodule=ToyData.Config(batch_size=8).build())
    assert len(module.config.structure) == 1
    assert find_plan(module.config.structure, "widen", "widen") is not None
    assert find_plan(module.config.structure, "widen", "another") is None


def test_restructure_after_the_optimizers_exist_is_refused(tmp_path: Path) -> None:
    module = ToyModule.Config().build(features=4)
    quiet_trainer(tmp_path).fit(module, datamodule=ToyData.Config(batch_size=8).build())
    with pytest.raises(RuntimeError, match="apply it in a callback's setup"):
        module.restructure(WidenPlan(width=16))


def test_start_from_a_checkpoint_takes_structure_and_weights(tmp_path: Path) -> None:
    module = ToyModule.Config().build(features=4)
    module.restructure(WidenPlan(width=16))
    trainer = quiet_trainer(tmp_path)
    trainer.fit(module, datamodule=ToyData.Config(batch_size=8).build())
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    second = ToyModule.Config(init_checkpoint=str(tmp_path / "first.ckpt")).build(features=4)
    assert describe(second.config.structure) == "base > widen"
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in second.state_dict().items())
    assert second.config.init_checkpoint is None  # a checkpoint of `second` must not need the first one's file


def test_start_from_a_checkpoint_that_does_not_fit_names_the_tensors(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path)
    trainer.fit(ToyModule.Config(width=8).build(features=4), datamodule=ToyData.Config(batch_size=8).build())
    trainer.save_checkpoint(tmp_path / "narrow.ckpt")
    with pytest.raises(ValueError, match=r"wrong shape: model.0.weight \(8, 4\) instead of \(9, 4\)"):
        ToyModule.Config(width=9, init_checkpoint=str(tmp_path / "narrow.ckpt")).build(features=4)
    with pytest.raises(ValueError, match="init_checkpoint: no file"):
        ToyModule.Config(init_checkpoint=str(tmp_path / "absent.ckpt")).build(features=4)


def test_unknown_plan_kind_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown kind 'widne'. Did you mean 'widen'"):
        plan_from({"kind": "widne", "width": 3})
    with pytest.raises(ValidationError, match="greater than 0"):
        plan_from({"kind": "widen", "width": 0})


# Objectives and sample weights.


def test_objectives_are_weighted_and_added() -> None:
    module = ToyModule.Config(dropout=0.0).build(features=4)
    module.objectives["size"] = Objective(lambda module, batch, outputs: outputs["prediction"].square().sum(-1), 0.5)
    batch = {"input": torch.randn(6, 4), "target": torch.randn(6, 2)}
    outputs = module.compute_outputs(batch)
    found = evaluate(module.objectives, module, batch, outputs)
    first = sum(squared_error(module, batch, outputs)) / 6
    second = sum(row.square().sum() for row in outputs["prediction"]) / 6
    torch.testing.assert_close(found.total, first + 0.5 * second)
    torch.testing.assert_close(found.values["size"], second.detach())
    assert found.count is None


def test_sample_weight_weights_every_objective() -> None:
    losses = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    weight = torch.tensor([0.0, 1.5, 1.5], dtype=torch.float64)
    assert weighted_mean(losses, None) == 3.0
    assert weighted_mean(losses, weight) == pytest.approx((1.5 * 2 + 1.5 * 6) / 3)
    with pytest.raises(ValueError, match=r"sample_weight has shape \(2,\), the losses \(3,\)"):
        weighted_mean(losses, weight[:2])


def test_a_weight_of_zero_removes_a_sample_from_training(tmp_path: Path) -> None:
    """Training on a batch whose second half weighs nothing equals training on twice the first half's loss weight."""
    module = ToyModule.Config(dropout=0.0).build(features=4)
    batch = {"input": torch.randn(4, 4), "target": torch.randn(4, 2), "sample_weight": torch.tensor([2.0, 2.0, 0, 0])}
    weighted = evaluate(module.objectives, module, batch, module.compute_outputs(batch)).total
    half = {"input": batch["input"][:2], "target": batch["target"][:2]}
    plain = evaluate(module.objectives, module, half, module.compute_outputs(half)).total
    torch.testing.assert_close(weighted, plain)


def test_wrong_objectives_are_named() -> None:
    module = ToyModule.Config().build(features=4)
    batch = {"input": torch.randn(4, 4), "target": torch.randn(4, 2)}
    module.objectives["wrong"] = Objective(lambda module, batch, outputs: outputs["prediction"])
    with pytest.raises(ValueError, match=r"objective 'wrong': .* shape \(batch,\); got \(4, 2\)"):
        evaluate(module.objectives, module, batch, module.compute_outputs(batch))
    with pytest.raises(ValueError, match="no objective"):
        evaluate({}, module, batch, {})


# Calibration.


def test_calibration_does_not_move_training() -> None:
    data = ToyData.Config(batch_size=8).build()
    data.setup("fit")
    state = torch.get_rng_state()
    order = [batch["input"] for batch in copy.copy(data).train_dataloader()]
    batches = list(calibration_batches(data, 3, seed=5))
    assert torch.equal(state, torch.get_rng_state())
    assert len(batches) == 3
    assert all(torch.equal(a, b["input"]) for a, b in zip(order, data.train_dataloader(), strict=True))
    again = list(calibration_batches(data, 3, seed=5))
    assert all(torch.equal(a["input"], b["input"]) for a, b in zip(batches, again, strict=True))
    other = list(calibration_batches(data, 3, seed=6))
    assert not torch.equal(batches[0]["input"], other[0]["input"])


# Imports point one way.


def test_the_library_imports_without_the_other_packages(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('callbacks', 'datamodules', 'recipes'): sys.modules[name] = None\n"
        "import pangu_modules\n"
        "for name in pangu_modules.__all__: getattr(pangu_modules, name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


@pytest.mark.parametrize("package", ["pangu_modules", "callbacks", "datamodules"])
def test_every_public_name_is_there(package: str) -> None:
    exports = importlib.import_module(package)
    assert len(exports.__all__) >= 9
    for name in exports.__all__:
        assert getattr(exports, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute"):
        exports.Nothing  # noqa: B018
