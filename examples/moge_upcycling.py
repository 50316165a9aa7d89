"""MoGE with a plain Trainer: a small Llama becomes a mixture of grouped experts, whose groups are always in balance."""

import torch
from lightning.pytorch import Trainer, seed_everything

from callbacks import ExpertLoad, RouterBalancing
from datamodules import DataModule
from pangu_modules import CausalLM, LoadConfig, OptimizerConfig, UpcycleConfig, UpcyclePlan

LLAMA = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
QUIET = {
    "accelerator": "cpu",
    "default_root_dir": "runs/examples",  # callbacks write their reports there
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
MIXTURE = UpcycleConfig(num_experts=8, num_groups=4, num_experts_per_tok=4, shared_expert_intermediate_size=32)


def sequences(count: int) -> list[dict[str, torch.Tensor]]:
    """Return sequences of 32 tokens that count upwards in steps of 1 to 4."""
    start, step = torch.randint(64, (count, 1)), torch.randint(1, 5, (count, 1))
    return [{"input_ids": row} for row in (start + step * torch.arange(32)) % 64]


def test_after(module: CausalLM, steps: int, *callbacks: ExpertLoad | RouterBalancing) -> dict[str, float]:
    """Train on 256 sequences and return what is measured on 64 others."""
    trainer = Trainer(max_steps=steps, callbacks=list(callbacks), **QUIET)
    trainer.fit(module, datamodule=data)
    return trainer.test(module, datamodule=data, verbose=False)[0]


seed_everything(0, verbose=False)
data = DataModule.Config(batch_size=8).build()
data.train_dataset, data.test_dataset = sequences(256), sequences(64)
config = CausalLM.Config(architecture="llama", model_args=LLAMA, optimizer=OptimizerConfig(lr=3e-3))
dense = config.build()
before = test_after(dense, 60)["test/perplexity"]
sparse = config.build()
sparse.load_state_dict(dense.state_dict())
sparse.restructure(UpcyclePlan(upcycle=MIXTURE))
load = ExpertLoad.Config(method=LoadConfig(token_counts=(128,))).build(name="load")
after = test_after(sparse, 30, load, RouterBalancing.Config().build(name="balance"))
print(f"perplexity {before:.2f}, as a mixture {after['test/perplexity']:.2f};", end=" ")
print(f"imbalance of the four groups {after['test/load/imbalance_128']:.1f}, as it must be")
