"""Sums: a tiny student learns to think, then to answer fast, then from its teacher (arXiv:2509.26497)."""

from callbacks import SampledAccuracy
from datamodules import ColumnSums
from pangu_modules import (
    CausalLM,
    GenerateStage,
    GenerationEngine,
    OptimizerConfig,
    Recipe,
    ScoreStage,
    Stage,
    distillation_rounds,
)

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
OF_TEACHER = MODULE.derive(model_args=TEACHER, optimizer={"lr": 3e-3})
CLIPPED = {"gradient_clip_val": 1.0}
ANSWERS = {"answers": SampledAccuracy.Config(data="ColumnSums", generation={"max_new_tokens": 32, "batch_size": 256})}

recipe = Recipe(
    stages={
        "teacher": Stage(
            module=OF_TEACHER,
            data=ColumnSums.Config(num_train=153_600, seed=1),
            callbacks=ANSWERS,
            trainer={**CLIPPED, "max_steps": 2400},
        ),
        "reason": Stage(
            module=MODULE,
            data=ColumnSums.Config(thinking_share=1.0),
            callbacks=ANSWERS,
            trainer={**CLIPPED, "max_steps": 400},
        ),
        "fast": Stage(
            module=MODULE,
            data=ColumnSums.Config(num_train=32_000, thinking_share=0.25, seed=2),  # a quarter is replayed
            callbacks=ANSWERS,
            trainer={**CLIPPED, "max_steps": 500},
            start_from="reason",
        ),
        **distillation_rounds(
            start_from="fast",
            generate=GenerateStage(
                module=MODULE,
                data=ColumnSums.Config(num_tasks=4266, seed=3),
                engine=GenerationEngine.Config(temperature=1.0, max_new_tokens=32, batch_size=256, logprobs=True),
                tasks_per_shard=1024,
            ),
            score=ScoreStage(
                module=OF_TEACHER, engine=GenerationEngine.Config(batch_size=256), top_k=8, start_from="teacher"
            ),
            distill=Stage(
                module=MODULE.derive(optimizer={"lr": 2e-3}),
                data=ColumnSums.Config(num_train=12_800, seed=4),
                callbacks=ANSWERS,
                trainer={**CLIPPED, "max_steps": 200},
            ),
        ),
    },
    cost="10 minutes on two cores",
)

if __name__ == "__main__":
    recipe.main()
