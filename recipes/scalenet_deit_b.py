"""ScaleNet: DeiT-B from 12 to 24 layers with shared weights (arXiv:2510.18431)."""

from callbacks import WeightAverage
from datamodules import ImageFolderData
from pangu_modules import OptimizerConfig, Recipe, ScaleNetClassifier

recipe = Recipe(
    module=ScaleNetClassifier.Config(
        backbone="deit_base_patch16_224",
        pretrained=True,
        num_classes=1000,
        depth_factor=2,
        adapter_rank=32,
        drop_path=0.1,
        label_smoothing=0.1,
        mixup=0.8,
        cutmix=1.0,
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.05, warmup_share=5 / 100),  # 5e-4 x 1024 / 512
    ),
    data=ImageFolderData.Config(root="data/imagenet", batch_size=128, num_workers=8),  # x 8 devices = 1024
    callbacks={"ema": WeightAverage.Config(decay=0.9998)},
    trainer={"max_epochs": 100, "precision": "bf16-mixed"},
    cost="paper scale",
    reference={"parameters": 89_002_216},  # 86,567,656 of DeiT-B and 2,434,560 added
)

if __name__ == "__main__":
    recipe.main()
