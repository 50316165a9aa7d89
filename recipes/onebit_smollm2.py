"""One-bit SmolLM2-135M: a short adaptation that shows the schedule on a real model (arXiv:2508.06974)."""

from callbacks import ProgressiveBinarization
from datamodules import TextData
from pangu_modules import CausalLM, OneBitConfig, OptimizerConfig, Recipe

# Rows of a well trained model have outliers of 16 to 29 times their mean, which the first values of t squeeze at once:
# hence a schedule without phases, whose t starts at 0 and rises with every step.
recipe = Recipe(
    module=CausalLM.Config(
        model="smollm2",
        optimizer=OptimizerConfig(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup_share=0.05),
    ),
    data=TextData.Config(sequence_length=128, batch_size=4, eval_batch_size=4, test_share=0.05, val_share=0.03),
    callbacks={
        "binarize": ProgressiveBinarization.Config(
            method=OneBitConfig(init="none", phases=0, schedule_steps=0.9, tail_share=0.1)
        )
    },
    trainer={"max_steps": 60, "limit_val_batches": 0, "limit_test_batches": 6, "gradient_clip_val": 1.0},
    cost="6 minutes on two cores",
)

if __name__ == "__main__":
    recipe.main()
