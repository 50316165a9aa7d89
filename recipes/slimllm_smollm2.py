"""SlimLLM on SmolLM2-135M: a fifth pruned in closed form, then a short distillation (arXiv:2505.22689)."""

from callbacks import Distillation, StructuredPruning
from datamodules import TextData
from pangu_modules import CausalLM, OptimizerConfig, Recipe, SlimLLMConfig

recipe = Recipe(
    module=CausalLM.Config(
        model="smollm2",
        optimizer=OptimizerConfig(lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, warmup_share=0.05),
    ),
    data=TextData.Config(sequence_length=128, batch_size=4, eval_batch_size=4, test_share=0.05, val_share=0.03),
    callbacks={
        "distill": Distillation.Config(teacher="smollm2"),
        "prune": StructuredPruning.Config(method=SlimLLMConfig(base_share=0.32, pruned_layers=24, alpha=10)),
    },
    trainer={"max_steps": 32, "val_check_interval": 16, "gradient_clip_val": 1.0},
    cost="5 minutes on two cores",
)

if __name__ == "__main__":
    recipe.main()
