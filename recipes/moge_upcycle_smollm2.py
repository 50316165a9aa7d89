"""SmolLM2-135M upcycled into a mixture of grouped experts, then trained for a few minutes (arXiv:2505.21411)."""

from callbacks import ExpertLoad, RouterBalancing
from datamodules import TextData
from pangu_modules import CausalLM, LoadConfig, OptimizerConfig, Recipe, UpcycleConfig, UpcyclePlan

# Half of each FFN becomes the shared expert, the rest 32 experts of 24 channels, of which a token uses 16.
recipe = Recipe(
    module=CausalLM.Config(
        model="smollm2",
        structure=(UpcyclePlan(upcycle=UpcycleConfig()),),
        optimizer=OptimizerConfig(lr=5e-4, betas=(0.9, 0.95), weight_decay=0.1, warmup_share=0.1),
    ),
    data=TextData.Config(sequence_length=128, batch_size=4, eval_batch_size=4, test_share=0.05, val_share=0.03),
    callbacks={
        "balance": RouterBalancing.Config(),
        "load": ExpertLoad.Config(method=LoadConfig(token_counts=(16, 128, 512))),
    },
    trainer={"max_steps": 40, "limit_val_batches": 0, "limit_test_batches": 6, "gradient_clip_val": 1.0},
    cost="5 minutes on two cores",
)

if __name__ == "__main__":
    recipe.main()
