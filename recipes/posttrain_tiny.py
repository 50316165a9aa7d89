"""Sums: a tiny student learns to think, then to answer fast, then from its teacher (arXiv:2509.26497)."""

from callbacks import OfflineDistillation, SampledAccuracy
from datamodules import ColumnSums, DistillationData
from pangu_modules import CausalLM, GenerateStage, GenerationEngine, OptimizerConfig, Recipe, ScoreStage, Stage

STUDENT = {  # 101,824 parameters
    **{"vocab_size": 18, "bos_token_id": 15, "eos_token_id": 16, "pad_token_id": 17},
    **{"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 4, "max_position_embeddings": 64, "tie_word_embeddings": True},
    "initializer_range": 0.06,  # so narrow a model learns slowly from the default, 0.02
}
TEACHER = {**STUDENT, "hidden_size": 128, "intermediate_size": 352}  # 404,352
ADAMW = OptimizerConfig(lr=4e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup_share=0.03, final_lr_share=0.1)
MODULE = CausalLM.Config(architecture="llama", model_args=STUDENT, optimizer=ADAMW, loss_per="token")
OF_TEACHER = MODULE.derive(model_args=TEACHER, optimizer={"lr": 3e-3})
WRITING = GenerationEngine.Config(max_new_tokens=32, batch_size=256)  # greedy
SAMPLES = WRITING.derive(temperature=1.0, logprobs=True)
ANSWERS = {"answers": SampledAccuracy.Config(data="ColumnSums", generation=WRITING)}
REPLAY = {"num_train": 32_000, "thinking_share": 0.25, "seed": 2}
CLIPPED = {"gradient_clip_val": 1.0}
TO_THINK = Stage(
    module=MODULE,
    data=ColumnSums.Config(num_train=25_600, thinking_share=1.0),
    callbacks=ANSWERS,
    trainer={**CLIPPED, "max_steps": 400},
    teacher_from="teacher",
)

recipe = Recipe(
    stages={
        "teacher": Stage(
            module=OF_TEACHER,
            data=ColumnSums.Config(num_train=153_600, seed=1),
            callbacks=ANSWERS,
            trainer={**CLIPPED, "max_steps": 2400},
        ),
        "reason": TO_THINK,
        # A quarter of thinking rows: without any, thinking would be forgotten.
        "fast": TO_THINK.derive(data=REPLAY, trainer={"max_steps": 500}, start_from="reason"),
        "generate": GenerateStage(
            **{"module": MODULE, "engine": SAMPLES, "tasks_per_shard": 1024, "start_from": "fast"},
            data=ColumnSums.Config(num_tasks=4354, seed=3),
        ),
        "score": ScoreStage(module=OF_TEACHER, engine=SAMPLES, top_k=8, start_from="teacher", data_from="generate"),
        "distill": Stage(
            module=MODULE.derive(optimizer={"lr": 2e-3}),
            data=DistillationData.Config(batch_size=64),
            callbacks={"distill": OfflineDistillation.Config(), **ANSWERS},
            trainer={**CLIPPED, "max_steps": 200},  # three epochs
            start_from="fast",
            data_from="score",
            teacher_from="teacher",
        ),
    },
    cost="10 minutes on two cores",
)

if __name__ == "__main__":
    recipe.main()
