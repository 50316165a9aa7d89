"""Pangu Light's shapes at 32B: Qwen3-32B cut to 22B; the paper's own shapes are unpublished (arXiv:2505.20155)."""

from callbacks import Distillation, PanguLightPruning
from datamodules import TextData
from pangu_modules import CausalLM, LayerSizes, OptimizerConfig, PanguLightConfig, Recipe, ShapePlan, TargetShape

QWEN3_32B = {
    "vocab_size": 151_936,
    "hidden_size": 5120,
    "intermediate_size": 25_600,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
}
LAYER = LayerSizes(num_heads=64, num_kv_heads=8, intermediate_size=20_480)

# `plan` needs the shapes alone, hence the structure below. To prune real weights, derive from this recipe:
# recipe.derive(module={"model": "Qwen/Qwen3-32B", "architecture": None, "model_args": {}, "structure": ()}).
recipe = Recipe(
    module=CausalLM.Config(
        architecture="qwen3",
        model_args=QWEN3_32B,
        structure=(ShapePlan(hidden_size=4608, layers=(LAYER,) * 56, kept_layers=tuple(range(56)), source="prune"),),
        optimizer=OptimizerConfig(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, warmup_share=0.05),
    ),
    data=TextData.Config(source="data/text", tokenizer="Qwen/Qwen3-32B", sequence_length=4096),
    callbacks={
        "distill": Distillation.Config(teacher="Qwen/Qwen3-32B"),
        "prune": PanguLightPruning.Config(
            method=PanguLightConfig(
                target=TargetShape(num_hidden_layers=56, hidden_size=4608, intermediate_size=20_480), round_to=256
            )
        ),
    },
    trainer={"max_epochs": 1, "precision": "bf16-mixed", "gradient_clip_val": 1.0},
    cost="paper scale",
    # 2 V d for embedding and head, L (d h (2 H + 2 K) + 3 d F + 2 h + 2 d) for the layers, d for the last norm.
    reference={
        "parameters": 2 * 151_936 * 4608 + 56 * (4608 * 128 * 144 + 3 * 4608 * 20_480 + 2 * 128 + 2 * 4608) + 4608
    },
)

if __name__ == "__main__":
    recipe.main()
