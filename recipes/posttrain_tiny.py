"""Curriculum fine-tuning of a tiny student on sums, then offline on-policy distillation (arXiv:2509.26497)."""

from datamodules import ColumnSums
from pangu_modules import CausalLM, OptimizerConfig, Recipe, Stage

STUDENT = {  # 101,824 parameters
    "vocab_size": 18,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.06,  # so narrow a model learns slowly from the default, 0.02
    "tie_word_embeddings": True,
    **{"bos_token_id": 15, "eos_token_id": 16, "pad_token_id": 17},  # those of the sums' tokenizer
}
TEACHER = {**STUDENT, "hidden_size": 128, "intermediate_size": 352}  # 404,352
ADAMW = OptimizerConfig(lr=4e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup_share=0.03, final_lr_share=0.1)
MODULE = CausalLM.Config(architecture="llama", model_args=STUDENT, optimizer=ADAMW, loss_per="token")
CLIPPED = {"gradient_clip_val": 1.0, "limit_val_batches": 0}

recipe = Recipe(
    stages={
        "teacher": Stage(
            module=MODULE.derive(model_args=TEACHER, optimizer={"lr": 3e-3}),
            data=ColumnSums.Config(num_train=153_600, seed=1),
            trainer={**CLIPPED, "max_steps": 2400},
        ),
        "reason": Stage(
            module=MODULE,
            data=ColumnSums.Config(thinking_share=1.0),
            trainer={**CLIPPED, "max_steps": 400},
        ),
        "fast": Stage(
            module=MODULE,
            data=ColumnSums.Config(thinking_share=0.25, num_train=32_000, seed=2),
            trainer={**CLIPPED, "max_steps": 500},
            start_from="reason",
        ),
    },
    cost="10 minutes on two cores",
)

if __name__ == "__main__":
    recipe.main()
