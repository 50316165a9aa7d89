"""Pangu Pro MoE 72B-A16B: the released mixture of grouped experts, 64 in 8 groups (arXiv:2505.21411)."""

from datamodules import TextData
from pangu_modules import CausalLM, OptimizerConfig, Recipe

# Per layer: attention with four biases, 64 routed experts, the shared expert, the gate with its 64 factors, two norms.
ATTENTION = 2 * 5120 * 5120 + 2 * 5120 * 1024 + 2 * 5120 + 2 * 1024
EXPERT = 3 * 5120 * 1344
OTHERS = ATTENTION + 3 * 5120 * 5376 + 64 * 5120 + 64 + 2 * 5120
OUTSIDE = 2 * 153_376 * 5120 + 5120  # embedding, head, last norm

# `plan` needs the shapes alone. To train real weights, derive from this recipe:
# recipe.derive(module={"model": "FOLDER", "architecture": None}), with the released checkpoint in FOLDER.
recipe = Recipe(
    module=CausalLM.Config(
        architecture="PanguProMoE",
        optimizer=OptimizerConfig(lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1),
        gradient_checkpointing=True,
    ),
    data=TextData.Config(source="data/text", tokenizer="data/tokenizer", sequence_length=4096),
    trainer={"max_epochs": 1, "precision": "bf16-true", "gradient_clip_val": 1.0},
    cost="paper scale",
    reference={
        "parameters": 48 * (OTHERS + 64 * EXPERT) + OUTSIDE,  # 71,988,781,056
        "active_parameters": 48 * (OTHERS + 8 * EXPERT) + OUTSIDE,  # 16,498,139,136
    },
)

if __name__ == "__main__":
    recipe.main()
