"""A drafter for SmolLM2-135M: 22 of its 30 layers dropped, then distilled; give its export as `assistant`."""

from callbacks import Distillation, LayerDropping
from datamodules import TextData
from pangu_modules import CausalLM, OptimizerConfig, Recipe, ShortGPTConfig

recipe = Recipe(
    module=CausalLM.Config(
        model="smollm2",
        optimizer=OptimizerConfig(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup_share=0.05),
    ),
    data=TextData.Config(sequence_length=128, batch_size=4, eval_batch_size=4, test_share=0.05, val_share=0.03),
    callbacks={
        "distill": Distillation.Config(teacher="smollm2"),
        "prune": LayerDropping.Config(method=ShortGPTConfig(dropped_layers=22)),
    },
    trainer={"max_steps": 60, "limit_val_batches": 0, "limit_test_batches": 6, "gradient_clip_val": 1.0},
    cost="4 minutes on two cores",
)

if __name__ == "__main__":
    recipe.main()
