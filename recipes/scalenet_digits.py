"""ScaleNet on real digits: a 12-block ViT doubled to 24 blocks with shared weights (arXiv:2510.18431)."""

from datamodules import DigitsData
from pangu_modules import ImageClassifier, OptimizerConfig, Recipe, ScaleNetClassifier, Stage

VIT = {
    "img_size": 28,
    "patch_size": 7,  # 4 x 4 tokens
    "in_chans": 1,
    "embed_dim": 64,
    "depth": 12,
    "num_heads": 4,
    "weight_init": "jax",  # so narrow a ViT hardly learns from timm's default initialisation
}
BACKBONE = "vit_tiny_patch16_224"  # the architecture; VIT sets every size
DATA = DigitsData.Config(source="mnist", train_size=2000, batch_size=64)
LONG = OptimizerConfig(
    lr=2e-3,
    weight_decay=0.05,
    respect_no_weight_decay=False,  # all that is not a vector decays
    warmup_share=1 / 45,  # one epoch of warm-up
)
SHORT = LONG.derive(warmup_share=1 / 15)

recipe = Recipe(
    stages={
        "base": Stage(
            module=ImageClassifier.Config(backbone=BACKBONE, model_args=VIT, optimizer=LONG),
            data=DATA,
            trainer={"max_epochs": 45, "gradient_clip_val": 1.0},
        ),
        "expand": Stage(
            module=ScaleNetClassifier.Config(
                backbone=BACKBONE, model_args=VIT, optimizer=SHORT, depth_factor=2, adapter_rank=8
            ),
            data=DATA,
            trainer={"max_epochs": 15, "gradient_clip_val": 1.0},
            start_from="base",
        ),
        "scratch": Stage(
            module=ImageClassifier.Config(backbone=BACKBONE, model_args={**VIT, "depth": 24}, optimizer=SHORT),
            data=DATA,
            trainer={"max_epochs": 15, "gradient_clip_val": 1.0},
        ),
    },
    cost="5 minutes on two cores",
)

if __name__ == "__main__":
    recipe.main()
