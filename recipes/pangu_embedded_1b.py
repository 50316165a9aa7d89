"""openPangu Embedded 1B at the paper's scale: SFT, SFT, distillation; never trained here (arXiv:2509.26497)."""

from callbacks import OfflineDistillation
from datamodules import ChatData, DistillationData, TaskFile
from pangu_modules import CausalLM, GenerateStage, GenerationEngine, OptimizerConfig, Recipe, ScoreStage, Stage

EMBEDDED_1B = {
    "vocab_size": 153_376,
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_hidden_layers": 26,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "head_dim": 128,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": False,
}
SAMPLES = GenerationEngine.Config(temperature=1.0, max_new_tokens=4096, logprobs=True)
TEACHER = {"base_url": "http://127.0.0.1:8000/v1", "model": "openPangu-Embedded-7B"}
ADAMW = OptimizerConfig(lr=2e-5, betas=(0.9, 0.95), weight_decay=0.1, warmup_share=0.03, final_lr_share=0.1)
# `plan` needs the shapes alone. To train the released weights, derive each stage's module with
# {"model": "models/openPangu-Embedded-1B", "architecture": None, "model_args": {}}.
MODULE = CausalLM.Config(
    architecture="llama", model_args=EMBEDDED_1B, optimizer=ADAMW, loss_per="token", gradient_checkpointing=True
)
DATA = ChatData.Config(
    source="data/reasoning.jsonl",
    tokenizer="FreedomIntelligence/openPangu-Embedded-1B",  # or the folder of the released model
    **{"sequence_length": 32_768, "packing": "best_fit", "batch_size": 1},
    **{"mode_field": "mode", "mode_tags": {"fast": " /no_think"}},
)
TRAINER = {"max_epochs": 2, "precision": "bf16-mixed", "gradient_clip_val": 1.0, "accumulate_grad_batches": 16}

recipe = Recipe(
    stages={
        "reason": Stage(module=MODULE, data=DATA, trainer=TRAINER),
        "fast": Stage(module=MODULE, data=DATA.derive(source="data/fast.jsonl"), trainer=TRAINER, start_from="reason"),
        "generate": GenerateStage(
            module=MODULE, data=TaskFile.Config(source="data/prompts.jsonl"), engine=SAMPLES, start_from="fast"
        ),
        "score": ScoreStage(  # the server has the model: none is built here
            module=MODULE, engine=GenerationEngine.Config(**TEACHER), top_k=32, data_from="generate"
        ),
        "distill": Stage(
            module=MODULE.derive(optimizer={"lr": 1e-5}),
            data=DistillationData.Config(batch_size=1),
            callbacks={"distill": OfflineDistillation.Config()},
            trainer={**TRAINER, "max_epochs": 1},
            start_from="fast",
            data_from="score",
        ),
    },
    cost="paper scale",
    # 2 V d for embedding and head, L (d h (2 H + 2 K) + 3 d F + 2 d) for the layers, d for the last norm.
    reference={"parameters": 2 * 153_376 * 1536 + 26 * (1536 * 128 * 36 + 3 * 1536 * 6144 + 2 * 1536) + 1536},
)

if __name__ == "__main__":
    recipe.main()
