"""DWM with a plain Trainer: half of the data is noise, and a weighting model learns which half."""

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from callbacks import DWMReweighting
from datamodules import DataModule
from pangu_modules import CausalLM, OptimizerConfig

LLAMA = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def sequences(count: int, noise: float) -> list[dict[str, torch.Tensor]]:
    """Return sequences of 16 tokens: those of domain 0 count upwards, the share of domain 1 is random."""
    domain = (torch.rand(count) < noise).long()
    counted = (torch.randint(64, (count, 1)) + torch.arange(16)) % 64
    tokens = torch.where(domain[:, None] == 1, torch.randint(64, (count, 16)), counted)
    return [{"input_ids": row, "domain": number} for row, number in zip(tokens, domain, strict=True)]


class NoiseWeight(Callback):
    """Keeps the weight of the noise in each batch, 1 for an ordinary sequence."""

    mean: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        """Note the batch's mean weight of noise; weights are even, and not written, in the first round."""
        if "sample_weight" in batch:
            self.mean.append(float(batch["sample_weight"][batch["domain"] == 1].mean()))


seed_everything(0, verbose=False)
data = DataModule.Config(batch_size=16).build()
data.train_dataset, data.val_dataset = sequences(1024, noise=0.5), sequences(64, noise=0)
module = CausalLM.Config(architecture="llama", model_args=LLAMA, optimizer=OptimizerConfig(lr=3e-3)).build()
dwm = DWMReweighting.Config(mode="online", dwm_every=2).build(name="dwm")
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = Trainer(
    max_steps=120,
    limit_val_batches=0,
    default_root_dir="runs/examples",
    callbacks=[dwm, NoiseWeight()],
    accelerator="cpu",
    **quiet,
)
trainer.fit(module, datamodule=data)
last = torch.tensor(NoiseWeight.mean[-20:])
print(f"mean weight of noise in the last 20 steps, 1 if nothing were learned: {last[~last.isnan()].mean():.2f}")
