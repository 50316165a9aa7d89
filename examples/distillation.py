"""Distillation with a plain Trainer: a small Llama learns from a larger one's logits, without the labels."""

import torch
from lightning.pytorch import Trainer, seed_everything

from datamodules import DataModule
from pangu_modules import CausalLM, Objective, OptimizerConfig, distillation_objective

LLAMA = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def sequences(count: int) -> list[dict[str, torch.Tensor]]:
    """Return sequences of 32 tokens that count upwards in steps of 1 to 4."""
    start, step = torch.randint(64, (count, 1)), torch.randint(1, 5, (count, 1))
    return [{"input_ids": row} for row in (start + step * torch.arange(32)) % 64]


def perplexity_after(module: CausalLM, steps: int) -> float:
    """Train on 256 sequences and return the perplexity of 64 others."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=steps, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module, datamodule=data)
    return trainer.test(module, datamodule=data, verbose=False)[0]["test/perplexity"]


seed_everything(0, verbose=False)
data = DataModule.Config(batch_size=8).build()
data.train_dataset, data.test_dataset = sequences(256), sequences(64)
config = CausalLM.Config(architecture="llama", model_args=LLAMA, optimizer=OptimizerConfig(lr=3e-3))
teacher, alone = config.build(), config.derive(model_args={**LLAMA, "num_hidden_layers": 1}).build()
taught = config.derive(model_args={**LLAMA, "num_hidden_layers": 1}).build()
best, plain = perplexity_after(teacher, 120), perplexity_after(alone, 60)
taught.objectives = {"distill": Objective(distillation_objective(teacher))}  # in place of language modelling
print(f"teacher {best:.2f}; after 60 steps one layer by itself {plain:.2f}, taught {perplexity_after(taught, 60):.2f}")
