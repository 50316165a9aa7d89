"""Runs of a tiny language model on two domains, with what writes weights into its batches."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback
from quiet_trainer import quiet_trainer
from tiny_llm import VOCABULARY, tiny_module
from torch.utils.data import Dataset

from callbacks import ExactResume
from datamodules import DataModule
from pangu_modules.llm.weighting.protocol import per_sequence_losses


class Mixture(Dataset):
    """Domain 0 counts upwards, domain 1 is random."""

    def __init__(self, size, seed, noise=True):
        generator = torch.Generator().manual_seed(seed)
        self.domain = torch.arange(size) % 2 if noise else torch.zeros(size, dtype=torch.long)
        start = torch.randint(3, 60, (size, 1), generator=generator)
        noisy = torch.randint(3, VOCABULARY, (size, 16), generator=generator)
        self.tokens = torch.where(self.domain[:, None] == 0, start + torch.arange(16), noisy)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "domain": self.domain[index]}


class Mixed(DataModule):
    """48 training sequences, 16 of the target."""

    class Config(DataModule.Config):
        batch_size: int = 4
        eval_batch_size: int = 8
        target: bool = True

    domains = ("clean", "noise")

    def setup(self, stage=None):
        self.train_dataset = Mixture(48, 1)
        self.val_dataset = Mixture(16, 2, noise=False) if self.config.target else None


class Seen(Callback):
    """Keeps weights, domains and losses of every batch, the losses as they were before the step."""

    def __init__(self):
        self.weights, self.domains, self.losses = [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        with torch.no_grad():
            self.losses.append(per_sequence_losses(module, batch))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.weights.append(batch["sample_weight"].clone())
        self.domains.append(batch["domain"])


def fit(folder, *callbacks, steps=12, module=None, ckpt_path=None, **data):
    trainer = quiet_trainer(
        folder,
        [*callbacks, ExactResume.Config().build(name="exact_resume")],
        max_steps=steps,
        num_sanity_val_steps=0,
    )
    module = module or tiny_module()
    trainer.fit(module, datamodule=Mixed.Config(**data).build(), ckpt_path=ckpt_path, weights_only=bool(ckpt_path))
    return trainer
