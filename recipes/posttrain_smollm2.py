"""Every second layer of SmolLM2-135M, mended, then distilled from the whole on its own answers (arXiv:2509.26497)."""

from callbacks import Distillation
from datamodules import ReasoningTasks, TextData
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
    distillation_rounds,
)

LAYER = LayerSizes(num_heads=9, num_kv_heads=3, intermediate_size=1536)
HALF = ShapePlan(hidden_size=576, layers=(LAYER,) * 15, kept_layers=tuple(range(0, 30, 2)), source="every second layer")
ADAMW = OptimizerConfig(lr=5e-4, betas=(0.9, 0.95), weight_decay=0.1, warmup_share=0.05, final_lr_share=0.1)
STUDENT = CausalLM.Config(model="smollm2", structure=(HALF,), optimizer=ADAMW)

recipe = Recipe(
    stages={
        "sft": Stage(
            module=STUDENT,
            data=TextData.Config(sequence_length=128, batch_size=4, eval_batch_size=4, test_share=0.05, val_share=0.03),
            callbacks={"distill": Distillation.Config(teacher="smollm2")},
            trainer={"max_steps": 64, "val_check_interval": 64, "gradient_clip_val": 1.0},
        ),
        **distillation_rounds(
            start_from="sft",
            generate=GenerateStage(
                module=STUDENT.derive(structure=()),
                data=ReasoningTasks.Config(num_train=64, num_test=10),
                engine=GenerationEngine.Config(temperature=1.0, max_new_tokens=64, batch_size=32, logprobs=True),
                tasks_per_shard=32,
            ),
            score=ScoreStage(module=CausalLM.Config(model="smollm2"), engine=GenerationEngine.Config(), top_k=32),
            distill=Stage(
                module=STUDENT.derive(structure=(), optimizer={"lr": 2e-4}),
                data=TextData.Config(sequence_length=128, batch_size=4),
                trainer={"max_epochs": 3, "gradient_clip_val": 1.0},
            ),
        ),
    },
    cost="15 minutes on two cores",
)

if __name__ == "__main__":
    recipe.main()
