"""Every second layer of SmolLM2-135M, mended, then distilled from the whole on its own answers (arXiv:2509.26497)."""

from callbacks import Distillation, OfflineDistillation
from datamodules import DistillationData, ReasoningTasks, TextData
from pangu_modules import (
    CausalLM,
    GenerateStage,
    GenerationEngine,
    LayerSizes,
    OptimizerConfig,
    Recipe,
    ScoreStage,
    ShapePlan,
    Stage,
)

LAYER = LayerSizes(num_heads=9, num_kv_heads=3, intermediate_size=1536)
HALF = ShapePlan(hidden_size=576, layers=(LAYER,) * 15, kept_layers=tuple(range(0, 30, 2)), source="every second layer")
ADAMW = OptimizerConfig(lr=5e-4, betas=(0.9, 0.95), weight_decay=0.1, warmup_share=0.05, final_lr_share=0.1)
STUDENT = CausalLM.Config(model="smollm2", structure=(HALF,), optimizer=ADAMW)
MENDED = STUDENT.derive(structure=(), optimizer={"lr": 2e-4})  # the checkpoint brings the structure

recipe = Recipe(
    stages={
        "sft": Stage(
            module=STUDENT,
            data=TextData.Config(sequence_length=128, batch_size=4, eval_batch_size=4, test_share=0.05, val_share=0.03),
            callbacks={"distill": Distillation.Config(teacher="smollm2")},
            trainer={"max_steps": 64, "val_check_interval": 64, "gradient_clip_val": 1.0},
        ),
        "generate": GenerateStage(
            module=MENDED,
            data=ReasoningTasks.Config(num_train=64, num_test=10),
            engine=GenerationEngine.Config(temperature=1.0, max_new_tokens=64, batch_size=32, logprobs=True),
            tasks_per_shard=32,
            start_from="sft",
        ),
        "score": ScoreStage(
            module=CausalLM.Config(model="smollm2"), engine=GenerationEngine.Config(), data_from="generate"
        ),
        "distill": Stage(
            module=MENDED,
            data=DistillationData.Config(batch_size=4, filters={"keep_truncated": True}),
            callbacks={"distill": OfflineDistillation.Config()},
            trainer={"max_epochs": 3, "gradient_clip_val": 1.0},
            start_from="sft",
            data_from="score",
        ),
    },
    cost="15 minutes on two cores",
)

if __name__ == "__main__":
    recipe.main()
