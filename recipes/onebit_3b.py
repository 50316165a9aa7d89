"""BinaryLLM at 3B, on OpenLLaMA's shapes; which base the paper used is not public (arXiv:2508.06974)."""

from recipes.onebit_135m import recipe as base

OPEN_LLAMA_3B = {
    "vocab_size": 32_000,
    "hidden_size": 3200,
    "intermediate_size": 8640,
    "num_hidden_layers": 26,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}

recipe = base.derive(
    module={"model_args": OPEN_LLAMA_3B, "gradient_checkpointing": True},
    data={"tokenizer": "openlm-research/open_llama_3b", "batch_size": 1},
    trainer={"accumulate_grad_batches": 128},
    reference={"parameters": 3_426_473_600, "binarized_weights": 3_221_504_000, "row_scales": 865_280},
)

if __name__ == "__main__":
    recipe.main()
