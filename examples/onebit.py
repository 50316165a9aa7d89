"""One-bit weights with a plain Trainer: a small Llama becomes exactly binary while it learns on."""

import torch
from lightning.pytorch import Trainer, seed_everything

from callbacks import ProgressiveBinarization
from datamodules import DataModule
from pangu_modules import CausalLM, OptimizerConfig

LLAMA = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
QUIET = {
    "accelerator": "cpu",
    "default_root_dir": "runs/examples",  # callbacks write their reports there
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def sequences(count: int) -> list[dict[str, torch.Tensor]]:
    """Return sequences of 32 tokens that count upwards in steps of 1 to 4."""
    start, step = torch.randint(64, (count, 1)), torch.randint(1, 5, (count, 1))
    return [{"input_ids": row} for row in (start + step * torch.arange(32)) % 64]


def perplexity_after(module: CausalLM, steps: int, *callbacks: ProgressiveBinarization) -> float:
    """Train on 512 sequences and return the perplexity of 64 others."""
    trainer = Trainer(max_steps=steps, callbacks=list(callbacks), **QUIET)
    trainer.fit(module, datamodule=data)
    return trainer.test(module, datamodule=data, verbose=False)[0]["test/perplexity"]


seed_everything(0, verbose=False)
data = DataModule.Config(batch_size=8).build()  # the initialization takes 50 batches
data.train_dataset, data.test_dataset = sequences(512), sequences(64)
module = CausalLM.Config(architecture="llama", model_args=LLAMA, optimizer=OptimizerConfig(lr=3e-3)).build()
dense = perplexity_after(module, 100)
binary = perplexity_after(module, 120, ProgressiveBinarization.Config(measure=False).build(name="binarize"))
row = module.model.model.layers[0].mlp.up_proj.weight[0]
print(f"perplexity {dense:.2f}; with {len(row.unique())} values in each row of the weights {binary:.2f}")
