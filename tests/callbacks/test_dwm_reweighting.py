"""DWMReweighting in a Trainer: schedule, weights, exact resume, transfer, other modules, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from pydantic import ValidationError
from tiny_llm import VOCABULARY, tiny_module
from torch import nn
from torch.utils.data import Dataset

from callbacks import DWMReweighting, ExactResume
from datamodules import DataModule
from pangu_modules import DataWeightingModel
from pangu_modules.llm.weighting.saving import load_weighting_model
from pangu_modules.objectives import weighted_mean

SMALL = {"d_model": 16, "n_layers": 1, "n_heads": 2}


class Mixture(Dataset):
    """Sequences of two domains: 0 repeats one token, 1 is random."""

    def __init__(self, size: int, seed: int, noise: bool = True) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(3, VOCABULARY, (size, 12), generator=generator)
        self.domain = torch.arange(size) % 2 if noise else torch.zeros(size, dtype=torch.long)
        clean = torch.randint(3, 20, (size, 1), generator=generator).expand(size, 12)
        self.tokens = torch.where(self.domain[:, None] == 0, clean, self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict:
        return {"input_ids": self.tokens[index], "domain": self.domain[index]}


class MixedData(DataModule):
    """32 training sequences, 8 clean ones for validation."""

    class Config(DataModule.Config):
        batch_size: int = 4
        eval_batch_size: int = 4

    domain_names = ("clean", "noise")

    def setup(self, stage=None):
        self.train_dataset, self.val_dataset = Mixture(32, 1), Mixture(8, 2, noise=False)
        self.calibration_dataset = Mixture(8, 3, noise=False)


class Seen(Callback):
    """Keeps the weights of every batch."""

    def __init__(self):
        self.weights, self.order = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.weights.append(batch["sample_weight"].clone() if "sample_weight" in batch else None)
        self.order.append(batch["input_ids"][:, :2].tolist() if "input_ids" in batch else None)


class StopAt(Callback):
    """Break off before a batch, after a checkpoint of the batch before."""

    def __init__(self, batch, path):
        self.batch, self.path, self.count = batch, path, 0

    def on_train_batch_end(self, trainer, *_):
        self.count += 1
        if self.count == self.batch:
            trainer.save_checkpoint(self.path)
            raise ZeroDivisionError


def dwm(**fields):
    fields = {"n_stages": 3, "dwm_steps": 2, "val_batch_size": 4, **fields}
    if "frozen" not in fields:
        fields["model"] = {**SMALL, **fields.get("model", {})}
    return DWMReweighting.Config(**fields).build(name="dwm")


def fit(folder, callback=None, *, module=None, data=None, extra=(), ckpt=None, steps=9, **arguments):
    trainer = lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*([callback] if callback else []), ExactResume.Config().build(name="exact_resume"), *extra],
        **{"limit_val_batches": 0, **arguments},
    )
    module = tiny_module() if module is None else module
    data = MixedData.Config().build() if data is None else data
    resumed = {"ckpt_path": ckpt, "weights_only": True} if ckpt else {}
    trainer.fit(module, datamodule=data, **resumed)
    return trainer


def same(first, second):
    for (name, value), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_virtual_stages(tmp_path):
    callback, seen, plain = dwm(), Seen(), Seen()
    trainer = fit(tmp_path, callback, extra=[seen])
    fit(tmp_path / "plain", extra=[plain])
    assert seen.order == plain.order  # the updates' own batches leave the training order alone
    assert seen.weights[:3] == [None] * 3  # stage 0 is ordinary training
    for weight in seen.weights[3:]:
        assert float(weight.sum()) == pytest.approx(4, abs=1e-5)
        assert weight.min() >= 0.1 - 1e-6  # floor 0.1 of the batch's 4
        assert not torch.equal(weight, torch.ones(4))
    assert callback.learner.updates == 4
    assert sorted(path.name for path in tmp_path.glob("dwm*")) == ["dwm_stage1.safetensors", "dwm_stage2.safetensors"]
    same(load_weighting_model(tmp_path / "dwm_stage2.safetensors"), callback.model)
    assert {"dwm/ess", "dwm/w_max", "dwm/weight/clean", "dwm/weight/noise"} <= set(trainer.callback_metrics)
    domains = json.loads((tmp_path / "report_parts" / "dwm-1-domains.json").read_text())["rows"]
    assert [row["domain"] for row in domains] == ["clean", "noise"]
    assert sum(row["tokens"] for row in domains) == 9 * 4 * 11
    assert [row["stage 0"] for row in domains] == [1.0, 1.0]
    stages = json.loads((tmp_path / "report_parts" / "dwm-2-stages.json").read_text())["rows"]
    assert [row["updates"] for row in stages] == [0, 2, 2]
