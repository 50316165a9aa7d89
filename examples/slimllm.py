"""SlimLLM with a plain Trainer: a quarter of a small Llama goes without gradients, then what is left learns on."""

import torch
from lightning.pytorch import Trainer, seed_everything

from callbacks import StructuredPruning
from datamodules import DataModule
from pangu_modules import CausalLM, OptimizerConfig, SlimLLMConfig

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


def perplexity_after(module: CausalLM, steps: int, *callbacks: StructuredPruning) -> float:
    """Train on 64 sequences and return the perplexity of 32 others."""
    trainer = Trainer(max_steps=steps, callbacks=list(callbacks), **QUIET)
    trainer.fit(module, datamodule=data)
    return trainer.test(module, datamodule=data, verbose=False)[0]["test/perplexity"]


seed_everything(0, verbose=False)
data = DataModule.Config(batch_size=8).build()
data.train_dataset, data.test_dataset = sequences(64), sequences(32)
module = CausalLM.Config(architecture="llama", model_args=LLAMA, optimizer=OptimizerConfig(lr=3e-3)).build()
dense, size = perplexity_after(module, 100), sum(p.numel() for p in module.parameters())
prune = StructuredPruning.Config(
    method=SlimLLMConfig(base_share=0.25, pruned_layers=3), progress_folder=None, measure=False
).build(name="prune")
pruned = perplexity_after(module, 10, prune)
left = sum(p.numel() for p in module.parameters()) / size
print(f"perplexity {dense:.2f}; with {left:.0%} of the parameters, after 10 more steps, {pruned:.2f}")
