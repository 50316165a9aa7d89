"""DWMReweighting in a Trainer: schedule, weights, exact resume, transfer, other modules, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings

import lightning
import pytest
import torch
from dwm_runs import MixedData, Mixture, Seen, dwm, fit, same
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.demos.boring_classes import BoringModel
from pydantic import ValidationError
from quiet_trainer import StopAt
from tiny_llm import VOCABULARY, tiny_module
from torch import nn

from callbacks import DWMReweighting
from pangu_modules.llm.weighting.saving import load_weighting_model
from pangu_modules.training.objectives import weighted_mean
from pangu_modules.training.optim import OptimizerConfig, lr_factor


def test_virtual_rounds(tmp_path):
    callback, seen, plain = dwm(), Seen(), Seen()
    trainer = fit(tmp_path, callback, extra=[seen])
    fit(tmp_path / "plain", extra=[plain])
    assert seen.order == plain.order  # the updates' own batches leave the training order alone
    assert seen.weights[:3] == [None] * 3  # round 0 is ordinary training
    for weight in seen.weights[3:]:
        assert float(weight.sum()) == pytest.approx(4, abs=1e-5)
        assert weight.min() >= 0.1 - 1e-6  # floor 0.1 of the batch's 4
        assert not torch.equal(weight, torch.ones(4))
    assert callback.learner.updates == 4
    assert sorted(path.name for path in tmp_path.glob("dwm_*")) == ["dwm_round1.safetensors", "dwm_round2.safetensors"]
    same(load_weighting_model(tmp_path / "dwm_round2.safetensors"), callback.model)
    assert {"dwm/ess", "dwm/w_max", "dwm/weight/clean", "dwm/weight/noise"} <= set(trainer.callback_metrics)
    domains = json.loads((tmp_path / "report_parts" / "dwm-1-domains.json").read_text())["rows"]
    assert [row["domain"] for row in domains] == ["clean", "noise"]
    assert sum(row["tokens"] for row in domains) == 9 * 4 * 11
    assert [row["round 0"] for row in domains] == [1.0, 1.0]
    rounds = json.loads((tmp_path / "report_parts" / "dwm-2-rounds.json").read_text())["rows"]
    assert [row["updates"] for row in rounds] == [0, 2, 2]


MODES = {
    "virtual": {},
    "real": {"lm_in_phase_a": "real"},
    "online": {"mode": "online", "dwm_every": 2},
    "hidden states": {"model": {"encoder": "lm"}, "lm_in_phase_a": "real"},
    "following": {"lm_in_phase_a": "real", "follow_lr": True},
}


@pytest.mark.parametrize("mode", MODES)
def test_resume_is_exact(tmp_path, mode):
    """Broken off in the middle of a round, and of phase A where it is spread over batches."""
    arguments = {"accumulate_grad_batches": 2, "max_epochs": 3, "steps": 12}
    fields = {"dwm_steps": 4, **MODES[mode]}
    whole, reference = dwm(**fields), tiny_module()
    fit(tmp_path / "whole", whole, module=reference, **arguments)
    for batch in (10, 14):  # round 1 has the micro-batches 9 to 16
        folder = tmp_path / str(batch)
        with pytest.raises(ZeroDivisionError):
            fit(folder, dwm(**fields), extra=[StopAt(batch, folder / "last.ckpt")], **arguments)
        callback, module = dwm(seed=5, **fields), tiny_module(seed=1)
        callback.config = whole.config  # a model of another seed, to be replaced by the stored one
        fit(folder, callback, module=module, ckpt=folder / "last.ckpt", **arguments)
        same(module, reference)
        same(callback.model, whole.model)
        assert callback.learner.updates == whole.learner.updates > 2
        for part in ("dwm-1-domains.json", "dwm-2-rounds.json"):
            parts = [(tmp_path / run / "report_parts" / part).read_text() for run in ("whole", str(batch))]
            assert parts[0] == parts[1]
        for number in (1, 2):
            files = [tmp_path / run / f"dwm_round{number}.safetensors" for run in ("whole", str(batch))]
            assert files[0].read_bytes() == files[1].read_bytes()


class Rates(Callback):
    """Keeps the learning rate of the weighting model at each batch."""

    def __init__(self, callback):
        self.callback, self.rates = callback, []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.rates.append(self.callback.learner.optimizer.param_groups[0]["lr"])


def test_the_learning_rate_follows_that_of_the_trained_model(tmp_path):
    optimizer, kept = OptimizerConfig(warmup_share=0.0), {}
    for follow in (False, True):
        callback = dwm(mode="online", dwm_every=1, dwm_lr=0.01, follow_lr=follow)
        rates = Rates(callback)
        fit(tmp_path / str(follow), callback, module=tiny_module(optimizer=optimizer), extra=[rates])
        kept[follow] = rates.rates[3:]  # round 0 has no updates
    assert kept[False] == [0.01] * 6
    factor = lr_factor(optimizer, total_steps=9)
    assert kept[True] == pytest.approx([0.01 * factor(step) for step in range(3, 9)])


def test_online_and_real_updates_come_when_they_should(tmp_path):
    steps = {}
    for mode in ("real", "online"):
        callback, when = dwm(**MODES[mode]), []
        original = callback._learn

        def learn(learner, trainer, batch, original=original, callback=callback, when=when):
            original(learner, trainer, batch)
            when += [trainer.global_step] * len(callback._results)

        callback._learn = learn
        fit(tmp_path / mode, callback)
        steps[mode] = when
    assert steps == {"real": [3, 4, 6, 7], "online": [4, 6, 8]}


def test_weights_of_hidden_states_are_those_of_the_same_forward_pass(tmp_path):
    """The loss is the weighted one, though the weights come in the middle of the forward pass."""
    callback = dwm(model={"encoder": "lm"}, num_rounds=2, dwm_lr=0.1, dwm_steps=4)
    seen, losses, checked = Seen(), [], []

    class Check(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 3:  # after the updates at step 2
                with torch.no_grad():
                    hidden = module.model.model(input_ids=batch["input_ids"]).last_hidden_state
                    expected = callback.model.weights(callback.model(features=hidden.mean(1)))
                    own = module.objectives["language_modelling"].loss(module, batch, module.compute_outputs(batch))
                losses.append((expected, own))

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if losses:
                expected, own = losses.pop()
                checked.append(trainer.global_step)
                torch.testing.assert_close(batch["sample_weight"], 4 * expected)
                torch.testing.assert_close(outputs["loss"], (expected * own).sum())

    # Check runs its own passes before the weights are expected
    fit(tmp_path, callback=Check(), extra=[callback, seen], steps=4)
    assert checked == [4]
    assert not torch.allclose(seen.weights[-1], torch.ones(4), atol=1e-3)
    assert not callback._reader._part._forward_hooks


def test_it_learns_to_prefer_what_helps_the_target(tmp_path):
    callback = dwm(num_rounds=2, dwm_steps=60, dwm_lr=3e-3, val_batch_size=8)
    fit(tmp_path, callback, steps=12, data=MixedData.Config(batch_size=8).build())
    rows = json.loads((tmp_path / "report_parts" / "dwm-1-domains.json").read_text())["rows"]
    clean, noise = (row["round 1"] for row in rows)
    assert noise < 0.5 < 1 < clean  # measured: 0.14 and 1.86


def test_static_weights_learn_in_one_round_only(tmp_path):
    callback = dwm(num_rounds=4, freeze_after_round=1)
    fit(tmp_path, callback, steps=8)
    first, *others = [(tmp_path / f"dwm_round{number}.safetensors").read_bytes() for number in (1, 2, 3)]
    assert callback.learner.updates == 2
    assert others == [first, first]


def test_uniform_throughout_is_ordinary_training(tmp_path):
    plain, warm = tiny_module(), tiny_module()
    fit(tmp_path / "plain", module=plain)
    fit(tmp_path / "dwm", dwm(warmup_rounds=3), module=warm)
    same(warm, plain)


class OwnModule(LightningModule):
    """A module of a user's own: the protocol and nothing else."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Embedding(VOCABULARY, 8), nn.Dropout(0.2), nn.Linear(8, VOCABULARY))

    def sequence_losses(self, batch):
        logits = self.net(batch["input_ids"][:, :-1])
        return nn.functional.cross_entropy(logits.mT, batch["input_ids"][:, 1:], reduction="none").mean(1)

    def training_step(self, batch, batch_idx):
        return weighted_mean(self.sequence_losses(batch), batch.get("sample_weight"))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("engine", ["fd", "jvp", "dot", "exact"])
def test_a_module_of_ones_own(tmp_path, engine):
    callback, seen = dwm(model={"vocab_size": VOCABULARY}, engine=engine, dwm_steps=4), Seen()
    fit(tmp_path, callback, module=OwnModule(), extra=[seen])
    assert callback.learner.updates == 8
    assert not torch.allclose(seen.weights[-1], torch.ones(4))


def test_features_given_by_the_data(tmp_path):
    class Features(Mixture):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return {**item, "features": nn.functional.one_hot(item["domain"], 2).float()}

    class Data(MixedData):
        def setup(self, stage=None):
            self.train_dataset, self.val_dataset = Features(32, 1), Features(8, 2, noise=False)

    callback = dwm(model={"encoder": "features", "feature_size": 2}, dwm_lr=0.1, dwm_steps=10)
    fit(tmp_path, callback, data=Data.Config(batch_size=8).build())
    rows = json.loads((tmp_path / "report_parts" / "dwm-1-domains.json").read_text())["rows"]
    assert rows[1]["round 2"] < 0.5 < rows[0]["round 2"]


class Broken(OwnModule):
    """A module whose losses are not numbers in updates."""

    def sequence_losses(self, batch):
        losses = super().sequence_losses(batch)
        return losses * (1 if "sample_weight" in batch else float("nan"))


def test_hypergradients_that_are_not_finite_are_skipped_and_then_refused(tmp_path):
    fields = {"model": {"vocab_size": VOCABULARY}, "precondition": "none"}
    callback, seen = dwm(**fields), Seen()
    trainer = fit(tmp_path, callback, module=Broken(), extra=[seen])
    assert callback.learner.skipped == 4
    assert float(trainer.callback_metrics["dwm/skipped"]) == 2
    assert all(torch.allclose(weight, torch.ones(4)) for weight in seen.weights[3:])
    with pytest.raises(RuntimeError, match="10 hypergradients in a row were not finite"):
        fit(tmp_path, dwm(dwm_steps=10, **fields), module=Broken())


def test_sequences_without_targets_have_no_weight(tmp_path):
    class SomeEmpty(Mixture):
        empty = 4

        def __getitem__(self, index):
            item = super().__getitem__(index)
            labels = torch.full((12,), -100) if index % self.empty == 0 else item["input_ids"]
            return {**item, "labels": labels}

    class AllEmpty(SomeEmpty):
        empty = 1

    class Data(MixedData):
        kind = SomeEmpty

        def setup(self, stage=None):
            self.train_dataset, self.val_dataset = self.kind(32, 1), Mixture(8, 2, noise=False)

    seen = Seen()
    fit(tmp_path, dwm(), data=Data.Config(batch_size=8).build(), extra=[seen], steps=6)
    assert any((weight == 0).any() for weight in seen.weights[2:])
    assert all(float(weight.sum()) == pytest.approx(8, abs=1e-5) for weight in seen.weights[2:])
    Data.kind = AllEmpty
    with pytest.raises(ValueError, match="no sequence of the batch has a target token"):
        fit(tmp_path, dwm(), data=Data.Config().build())


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="weights are relative within the batch; B must be >= 2"):
        fit(tmp_path, dwm(lm_in_phase_a="real"), data=MixedData.Config(batch_size=1).build())
    with pytest.raises(ValueError, match='attn_implementation="eager"'):
        fit(tmp_path, dwm(engine="jvp"))
    with pytest.raises(ValueError, match='engine="fd" needs float32 parameters'):
        fit(tmp_path, dwm(), module=tiny_module().bfloat16())
    with pytest.raises(TypeError, match=r"implement sequence_losses\(batch\) -> \(batch,\)"):
        fit(tmp_path, dwm(), module=BoringModel())
    with pytest.raises(ValueError, match="tells no vocabulary"):
        fit(tmp_path, dwm(), module=OwnModule())
    with pytest.raises(ValueError, match="forward pass of a transformers model"):
        fit(tmp_path, dwm(model={"encoder": "lm"}), module=OwnModule())
    with pytest.raises(ValueError, match=r"'dwm' and 'other' both write batch\['sample_weight'\]"):
        fit(tmp_path, dwm(), extra=[DWMReweighting.Config().build(name="other")])
    with pytest.raises(ValueError, match=r"holds no dwm_round\*.safetensors"):
        fit(tmp_path, dwm(frozen=str(tmp_path)))
    with pytest.raises(ValidationError, match="target='test': the target steers training"):
        DWMReweighting.Config(target="test")
    with pytest.raises(ValidationError, match="warmup_rounds=6 is more than num_rounds=5"):
        DWMReweighting.Config(warmup_rounds=6)


def test_targets_that_cannot_be_used_are_refused(tmp_path):
    def data(**datasets):
        class Data(MixedData):
            def setup(self, stage=None):
                super().setup()
                for name, value in datasets.items():
                    setattr(self, name, self.train_dataset if value == "train" else value)

        return Data.Config().build()

    with pytest.raises(ValueError, match="target='val': the dataset is empty"):
        fit(tmp_path, dwm(), data=data(val_dataset=Mixture(0, 1)))
    with pytest.raises(ValueError, match="target='val' is the training dataset itself"):
        fit(tmp_path, dwm(), data=data(val_dataset="train"))
    with pytest.raises(ValueError, match=r"target='lambada': Data has no such map-style dataset; it has .*calibration"):
        fit(tmp_path, dwm(target="lambada"), data=data())
    with pytest.raises(ValueError, match="target='val': Data has no such map-style dataset; it has calibration"):
        fit(tmp_path, dwm(), data=data(val_dataset=None))
    fit(tmp_path, dwm(target="calibration"), data=data(val_dataset=None))
    trainer = lightning.Trainer(max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.callbacks.append(dwm())
    loaders = MixedData.Config().build()
    loaders.setup()
    with pytest.raises(ValueError, match="give fit a datamodule instead of loaders"):
        trainer.fit(tiny_module(), loaders.train_dataloader())


def test_only_fit_sets_it_up(tmp_path):
    callback = dwm()
    callback.setup(None, None, "validate")
    assert callback.model is None


def test_two_processes_of_a_trainer_equal_one(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert "trained on 2 processes" in child.stdout, child.stderr
    module = train_together(tmp_path / "one", batch_size=8)
    two = torch.load(tmp_path / "two" / "module.pt", weights_only=True)
    for name, value in module.state_dict().items():
        # measured: 2e-7
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)
    tables = [
        json.loads((tmp_path / run / "report_parts" / "dwm-1-domains.json").read_text()) for run in ("one", "two")
    ]
    for first, second in zip(tables[0]["rows"], tables[1]["rows"], strict=True):
        assert first["tokens"] == second["tokens"]
        assert first["round 2"] == pytest.approx(second["round 2"], abs=1e-3)
    assert abs(tables[0]["rows"][0]["round 2"] - 1) > 0.01  # the weights are not uniform


def train_together(folder, **arguments):
    """Train by plain SGD with weights over the batches of all processes; returns the module."""
    module = OwnModule()
    module.net[1].p = 0.0
    callback = dwm(sync_weights=True, model={"vocab_size": VOCABULARY}, dwm_lr=0.01, dwm_steps=3, precondition="none")
    data = MixedData.Config(batch_size=arguments.pop("batch_size")).build()
    fit(folder, callback, module=module, data=data, **arguments)
    return module


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    trained = train_together(sys.argv[1] + "/two", batch_size=4, devices=2, strategy="ddp")
    if trained.global_rank == 0:
        torch.save(trained.state_dict(), sys.argv[1] + "/two/module.pt")
        print("trained on 2 processes", flush=True)
