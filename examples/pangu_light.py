"""Pangu Light with a plain Trainer: a small Llama loses a layer and a quarter of its width, then learns on."""

import torch
from lightning.pytorch import Trainer, seed_everything

from callbacks import PanguLightPruning
from datamodules import DataModule
from pangu_modules import CalibrationConfig, CausalLM, OptimizerConfig, PanguLightConfig, TargetShape

LLAMA = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
QUIET = {
    "accelerator": "cpu",
    "default_root_dir": "runs/examples",  # callbacks write their reports there
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def sequences(count: int) -> list[dict[str, torch.Tensor]]:
    """Return sequences of 128 tokens that count upwards in steps of 1 to 4."""
    start, step = torch.randint(64, (count, 1)), torch.randint(1, 5, (count, 1))
    return [{"input_ids": row} for row in (start + step * torch.arange(128)) % 64]


def perplexity_after(module: CausalLM, steps: int, *callbacks: PanguLightPruning) -> float:
    """Train on 64 sequences and return the perplexity of 32 others."""
    trainer = Trainer(max_steps=steps, callbacks=list(callbacks), **QUIET)
    trainer.fit(module, datamodule=data)
    return trainer.test(module, datamodule=data, verbose=False)[0]["test/perplexity"]


seed_everything(0, verbose=False)
data = DataModule.Config(batch_size=8).build()
data.train_dataset, data.test_dataset = sequences(64), sequences(32)
module = CausalLM.Config(architecture="llama", model_args=LLAMA, optimizer=OptimizerConfig(lr=3e-3)).build()
dense, size = perplexity_after(module, 100), sum(p.numel() for p in module.parameters())
prune = PanguLightPruning.Config(
    method=PanguLightConfig(
        target=TargetShape(num_hidden_layers=3, hidden_size=24), calibration=CalibrationConfig(num_samples=32)
    ),
    progress_folder=None,
    measure=False,
).build(name="prune")
pruned = perplexity_after(module, 30, prune)
left = sum(p.numel() for p in module.parameters()) / size
print(f"perplexity {dense:.2f}; with {left:.0%} of the parameters, after 30 more steps, {pruned:.2f}")
