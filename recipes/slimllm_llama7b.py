"""SlimLLM on LLaMA-7B: the paper's 20 % setting with LoRA recovery (arXiv:2505.22689)."""

from callbacks import StructuredPruning
from datamodules import ChatData
from pangu_modules import CausalLM, LayerSizes, LoRAConfig, OptimizerConfig, Recipe, ShapePlan, SlimLLMConfig

LLAMA_7B = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
WHOLE = LayerSizes(num_heads=32, num_kv_heads=32, intermediate_size=11008)
PRUNED = LayerSizes(  # a quarter of the heads and channels; the regression adds two biases
    num_heads=24, num_kv_heads=24, intermediate_size=8256, attention_output_bias=True, mlp_output_bias=True
)

# `plan` needs the shapes alone, hence the structure below: 26 of 32 layers, with alpha = 0 all by the same share (which
# layers those are is up to the calibration text; their number decides the size). To prune real weights, derive from
# this recipe: recipe.derive(module={"model": "FOLDER", "architecture": None, "model_args": {}, "structure": ()}).
recipe = Recipe(
    module=CausalLM.Config(
        architecture="llama",
        model_args=LLAMA_7B,
        structure=(
            ShapePlan(
                hidden_size=4096,
                layers=(*[WHOLE] * 3, *[PRUNED] * 26, *[WHOLE] * 3),
                kept_layers=tuple(range(32)),
                source="prune",
            ),
        ),
        optimizer=OptimizerConfig(lr=1e-4, weight_decay=0.0, warmup_share=100 / 6200),  # 100 warm-up steps
    ),
    # The paper tunes on yahma/alpaca-cleaned: here as conversations, with LLaMA's tokenizer and a chat template.
    data=ChatData.Config(source="data/alpaca.jsonl", tokenizer="data/tokenizer", sequence_length=256, batch_size=4),
    callbacks={
        "prune": StructuredPruning.Config(
            method=SlimLLMConfig(base_share=0.25, pruned_layers=26, alpha=10),
            lora=LoRAConfig(rank=4, alpha=16, dropout=0.05),
        )
    },
    trainer={"max_epochs": 2, "accumulate_grad_batches": 4, "precision": "bf16-mixed"},
    cost="paper scale",
    reference={"parameters": 5_423_190_016},
)

if __name__ == "__main__":
    recipe.main()
