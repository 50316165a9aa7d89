"""ScaleNet with a plain Trainer: a ViT that knows scikit-learn's digits is made twice as deep, and learns on."""

import torch
from lightning.pytorch import Trainer, seed_everything
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from pangu_modules import ImageClassifier, OptimizerConfig, ScaleNetConfig, ScaleNetPlan

VIT = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 32, "depth": 4, "num_heads": 4, "weight_init": "jax"}
images, labels = load_digits(return_X_y=True)
pixels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
samples = [{"image": image, "label": label} for image, label in zip(pixels, torch.tensor(labels), strict=True)]
config = ImageClassifier.Config(
    backbone="vit_tiny_patch16_224", model_args=VIT, num_classes=10, optimizer=OptimizerConfig(lr=3e-3)
)


def accuracy_after(module: ImageClassifier, epochs: int) -> float:
    """Train on the first 1500 digits and return the accuracy on the other 297."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module, DataLoader(samples[:1500], batch_size=50, shuffle=True))
    return trainer.test(module, DataLoader(samples[1500:], batch_size=99), verbose=False)[0]["test/accuracy"]


seed_everything(0, verbose=False)
base = config.build()
before = accuracy_after(base, epochs=5)
deeper = config.build()
deeper.load_state_dict(base.state_dict())
deeper.restructure(ScaleNetPlan(expansion=ScaleNetConfig(depth_factor=2, adapter_rank=4)))
print(f"4 blocks: {before:.1%}, the same weights in 8 blocks: {accuracy_after(deeper, epochs=2):.1%} of digits right")
