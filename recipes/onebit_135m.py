"""BinaryLLM at the scale of SmolLM-135M: the paper's schedule and 20 B tokens (arXiv:2508.06974)."""

from callbacks import ProgressiveBinarization
from datamodules import TextData
from pangu_modules import CausalLM, OneBitConfig, OptimizerConfig, Recipe

SMOLLM_135M = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}

# `plan` needs the shapes alone. To convert pretrained weights, derive from this recipe:
# recipe.derive(module={"model": "HuggingFaceTB/SmolLM-135M", "architecture": None, "model_args": {}}).
recipe = Recipe(
    module=CausalLM.Config(
        architecture="llama",
        model_args=SMOLLM_135M,
        # The learning rate ends at 2e-6. Betas and warm-up are not published.
        optimizer=OptimizerConfig(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, warmup_share=0.02, final_lr_share=0.02),
    ),
    data=TextData.Config(source="data/redpajama", sequence_length=2048, batch_size=8),
    callbacks={"binarize": ProgressiveBinarization.Config(method=OneBitConfig(), measure=False)},
    trainer={
        "max_steps": 76_294,  # 20 B tokens in batches of 128 x 2048
        "accumulate_grad_batches": 16,
        "precision": "bf16-mixed",
        "gradient_clip_val": 1.0,
    },
    cost="paper scale",
    reference={"parameters": 134_515_008, "binarized_weights": 106_168_320, "row_scales": 155_520},
)

if __name__ == "__main__":
    recipe.main()
