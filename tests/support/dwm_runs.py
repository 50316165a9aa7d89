"""Short runs with DWMReweighting on two domains, and callbacks that look at them."""

from __future__ import annotations

import copy

import torch
from lightning.pytorch import Callback
from quiet_trainer import quiet_trainer
from tiny_llm import VOCABULARY, tiny_module
from torch.utils.data import Dataset

from callbacks import DWMReweighting, ExactResume
from callbacks.weighting.config import MOVED
from datamodules import DataModule

SMALL = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}


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


def dwm(**fields):
    fields = {"num_rounds": 3, "dwm_steps": 2, "val_batch_size": 4, **fields}
    method = {name: fields.pop(name) for name in MOVED if name in fields}
    if "frozen" not in fields:
        method["model"] = {**SMALL, **method.get("model", {})}
    return DWMReweighting.Config(**fields, method=method).build(name="dwm")


def fit(folder, callback=None, *, module=None, data=None, extra=(), ckpt=None, steps=9, **arguments):
    trainer = quiet_trainer(
        folder,
        [*([callback] if callback else []), ExactResume.Config().build(name="exact_resume"), *extra],
        max_steps=steps,
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


class Clones(Callback):
    """Keeps the trained model as it is before each batch."""

    def __init__(self):
        self.models = []

    def on_train_batch_start(self, trainer, module, *_):
        self.models.append(copy.deepcopy(module.model).eval())
